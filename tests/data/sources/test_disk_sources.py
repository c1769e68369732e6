"""JSON Lines, Parquet, CSV, text, ArrayRecord, TFDS and MediaWiki: what is in the file comes out, the rest counts."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import fsspec
import pytest
import zstandard

from data.document import Document
from data.sources import remote
from data.sources.array_records import ArrayRecordSource, TfdsSource
from data.sources.csv_files import CsvSource
from data.sources.extract_methods import decode_page
from data.sources.files import list_files
from data.sources.hf_datasets import HfDatasetSource
from data.sources.jsonl import JsonlSource
from data.sources.limits import ReadLimits
from data.sources.mediawiki import MediaWikiSource, wikitext_to_text
from data.sources.parquet import ParquetSource
from data.sources.parquet_pages import page_header
from data.sources.text_files import TextFolder
from tests.data.sources.helpers import read, reasons, reply, serve

ROWS = [{"text": f"Row {i}: ĉu vi legas?\nYes.", "url": f"https://a.example/{i}", "n": i} for i in range(500)]


def _jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress, bz2.compress], ids=["plain", "gz", "zst", "bz2"]
)
def test_jsonl_is_the_same_in_every_compression(tmp_path: Path, pack) -> None:
    data = _jsonl(ROWS)
    half = data.index(b"\n", len(data) // 2) + 1
    (tmp_path / "rows.jsonl").write_bytes(pack(data[:half]) + pack(data[half:]))  # two members or frames
    documents, drops = read(JsonlSource(name="j", paths=(str(tmp_path),), meta_fields=("url",)))
    assert [d.text for d in documents] == [row["text"] for row in ROWS] and not drops
    assert documents[3].meta["url"] == "https://a.example/3" and documents[0].id == "j:rows.jsonl:0"


def test_jsonl_ids_do_not_depend_on_how_the_file_is_cut(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(_jsonl(ROWS))
    whole, _ = read(JsonlSource(name="j", paths=(str(tmp_path),)))
    for size in (100, 777, 5000):
        source = JsonlSource(name="j", paths=(str(tmp_path),), split_bytes=size)
        assert len(source.shards()) > 5
        cut, drops = read(source)
        assert cut == whole and not drops


def test_jsonl_bad_lines_are_counted_and_the_rest_read(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "bad',
        b"[1, 2]",
        b'{"other": 1}',
        b'{"text": 3}',
        b'{"text": "\xff"}',
        b'{"text": "   "}',
        b"",
        b'{"text": "' + b"x" * 5000 + b'"}',
        b"[" * 100_000,
        b'{"text": "a lone \\ud800 half"}',
        b'{"text": "last"}',
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    documents, drops = read(
        JsonlSource(name="j", paths=(str(tmp_path / "rows.jsonl"),), limits=ReadLimits(max_record_bytes=4000))
    )
    assert [d.text for d in documents] == ["good", "a lone \ufffd half", "last"]
    assert reasons(drops) == {
        "bad_json": 1,
        "not_an_object": 1,
        "no_text_field": 1,
        "text_is_not_a_string": 1,
        "bad_encoding": 1,
        "empty_text": 1,
        "record_too_large": 2,
    }


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gz", "zst"])
def test_truncated_compression_is_one_counted_drop_after_what_was_read(tmp_path: Path, pack) -> None:
    rows = [{"text": os.urandom(200).hex()} for _ in range(3000)]
    packed = pack(_jsonl(rows))
    (tmp_path / "rows.jsonl").write_bytes(packed[: len(packed) * 2 // 3])
    documents, drops = read(JsonlSource(name="j", paths=(str(tmp_path),)))
    assert 1000 < len(documents) < 3000 and [d.text for d in documents] == [r["text"] for r in rows[: len(documents)]]
    assert reasons(drops)["corrupt_file"] == 1 and len(drops) <= 2


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gz", "zst"])
def test_a_decompression_bomb_ends_early(tmp_path: Path, pack) -> None:
    (tmp_path / "bomb.jsonl").write_bytes(pack(bytes(32 << 20)))
    limits = ReadLimits(expansion_grace=4 << 20)
    documents, drops = read(JsonlSource(name="j", paths=(str(tmp_path),), limits=limits))
    assert not documents and reasons(drops) == {"expands_too_far": 1}


def test_fsspec_paths_read_as_local_ones(tmp_path: Path) -> None:
    with fsspec.open("memory://bucket/rows.jsonl.gz", "wb") as stream:
        stream.write(gzip.compress(_jsonl(ROWS)))
    for path in ("memory://bucket/rows.jsonl.gz", "memory://bucket/*.jsonl.gz", "memory://bucket"):
        documents, drops = read(JsonlSource(name="j", paths=(path,)))
        assert len(documents) == 500 and not drops


def test_https_files_are_fetched_once_and_checked(tmp_path: Path, cache_folder: Path) -> None:
    """One file answers in full, one at the second try, one never: the others are read and the run goes on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    data = {"/good.parquet": (tmp_path / "rows.parquet").read_bytes(), "/flaky.jsonl.gz": gzip.compress(_jsonl(ROWS))}
    bodies: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/silent.jsonl":
            return time.sleep(2)
        if handler.command == "GET":
            bodies.append(handler.path)
        if handler.command == "GET" and handler.path == "/flaky.jsonl.gz" and bodies.count(handler.path) == 1:
            reply(handler, b"", status=500)
        else:
            reply(handler, data[handler.path])

    with serve(answer) as address:
        for _ in range(2):
            documents, drops = read(ParquetSource(name="p", paths=(f"{address}/good.parquet",)))
            assert [d.text for d in documents] == [row["text"] for row in ROWS] and not drops
        assert bodies.count("/good.parquet") == 1 and len(list((cache_folder / "sluice" / "files").iterdir())) == 1
        source = JsonlSource(name="j", paths=(f"{address}/flaky.jsonl.gz", f"{address}/silent.jsonl"))
        documents, drops = read(source)
    assert len(documents) == 500 and reasons(drops) == {"fetch_failed": 1}
    assert drops[0].document.id == "j:silent.jsonl:end"
    with pytest.raises(ValueError, match="package of its own"):
        list_files(("sftp://a.example/x",), ())


def test_the_cache_of_remote_files_forgets_what_was_used_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "CACHE_BYTES", 250)
    filesystem = fsspec.filesystem("memory")
    for name in "abc":
        filesystem.pipe(f"/cache/{name}", name.encode() * 100)
    paths = {}
    for time_used, name in enumerate("abac"):
        paths[name] = Path(remote.local_copy(f"memory://cache/{name}"))
        os.utime(paths[name], (time_used, time_used))
    assert [name for name in "abc" if paths[name].exists()] == ["a", "c"]
    filesystem.pipe("/cache/a", b"new")
    assert Path(remote.local_copy("memory://cache/a")).read_bytes() == b"new"


def test_listing_skips_links_that_lead_nowhere_and_does_not_follow_loops(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("one")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "self.txt").symlink_to(tmp_path / "a" / "self.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    assert [entry.key for entry in list_files((str(tmp_path),), (".txt",))] == ["a/one.txt"]
    with pytest.raises(ValueError, match="no input at"):
        list_files((str(tmp_path / "missing"),), (".txt",))


def test_the_same_name_in_two_folders_gives_two_ids(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"text of {name}")
    documents, _ = read(TextFolder(name="t", paths=(str(tmp_path / "x"), str(tmp_path / "y"))))
    assert [d.id for d in documents] == ["t:0/a.txt", "t:1/a.txt"]


def test_inputs_key_follows_the_bytes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    source = TextFolder(name="t", paths=(str(tmp_path),))
    before = source.inputs_key()
    os.utime(path, (1, 1))
    assert source.inputs_key() == before
    path.write_text("two")
    assert source.inputs_key() != before


def test_parquet_rows_in_order_over_shards_and_a_cut_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([*ROWS, {"text": None, "url": "u", "n": 0}]), path, row_group_size=50)
    source = ParquetSource(name="p", paths=(str(path),), meta_fields=("n",), row_groups_per_shard=3)
    assert len(source.shards()) == 4
    documents, drops = read(source)
    assert [d.text for d in documents] == [row["text"] for row in ROWS] and documents[77].meta["n"] == 77
    assert documents[77].id == "p:rows.parquet:77" and reasons(drops) == {"text_is_not_a_string": 1}
    path.write_bytes(path.read_bytes()[:-100])
    assert reasons(read(ParquetSource(name="p", paths=(str(path),)))[1]) == {"corrupt_file": 1}


def test_parquet_fields_inside_of_structs(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"page": {"text": "one", "url": "u"}, "a.b": 1}, {"page": None, "a.b": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    fields = ("page.url", "a.b")
    source = ParquetSource(name="p", paths=(str(tmp_path),), text_field="page.text", meta_fields=fields)
    (document,), drops = read(source)
    assert document.text == "one" and [document.meta[field] for field in fields] == ["u", 1]
    assert reasons(drops) == {"text_is_not_a_string": 1}


def test_parquet_pages_that_would_take_the_memory_are_not_decompressed(tmp_path: Path) -> None:
    """One row group with a value that is too large, one that is a bomb, and one that is read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, rows = tmp_path / "rows.parquet", [{"text": os.urandom(20).hex()} for _ in range(10)]
    large = [*rows, {"text": os.urandom(1 << 20).hex()}, *rows]
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), compression="zstd") as writer:
        for group in (large, [{"text": "x" * (2 << 20)}], rows):
            writer.write_table(pa.Table.from_pylist(group))
    limits = ReadLimits(max_record_bytes=64 << 10, expansion_grace=64 << 10)
    documents, drops = read(ParquetSource(name="p", paths=(str(path),), limits=limits))
    assert [d.text for d in documents] == [row["text"] for row in rows] and documents[0].meta["row"] == 22
    assert reasons(drops) == {"expands_too_far": 22}  # every row that was not read is counted
    for header in (b"", b"\x15", b"\x00", b"\x3c" * 100, b"\x15\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
        with pytest.raises(ValueError, match="page header"):
            page_header(header)


def test_csv_quotes_line_ends_and_wrong_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbftext,n\n"two\nlines, and ""quotes""",1\nshort\n\xff,2\nlast,3\n')
    documents, drops = read(CsvSource(name="c", paths=(str(path),), meta_fields=("n",)))
    assert [(d.text, d.meta["n"]) for d in documents] == [('two\nlines, and "quotes"', "1"), ("last", "3")]
    assert reasons(drops) == {"wrong_number_of_fields": 1, "bad_encoding": 1}
    path.write_bytes(b"\ntext,n\na,1\n")
    assert reasons(read(CsvSource(name="c", paths=(str(path),)))[1]) == {"empty_file": 1}
    path.write_bytes(b'text,n\n"never closed' + b"x,1\n" * 10000)
    documents, drops = read(CsvSource(name="c", paths=(str(path),), limits=ReadLimits(max_record_bytes=5000)))
    assert reasons(drops) == {"record_too_large": 1} and 8000 < len(documents) < 9000
    path.write_bytes(b"text,n\n" + b"y" * 9000 + b",1\n" + b"x" * 4000 + b",2\n")
    (document,), drops = read(CsvSource(name="c", paths=(str(path),), limits=ReadLimits(max_record_bytes=5000)))
    assert document.text == "x" * 4000 and document.meta["row"] == 2 and reasons(drops) == {"record_too_large": 1}


def test_settings_and_names_that_look_like_others(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="delimiter is 'tab': expected one character"):
        CsvSource(name="c", paths=("x.csv",), delimiter="tab")
    (tmp_path / "Title [1999].txt").write_text("Text.")  # no glob, where there is such a file
    (document,), _ = read(TextFolder(name="t", paths=(str(tmp_path / "Title [1999].txt"),)))
    assert document.text == "Text."


def test_text_encodings_are_found_and_named(tmp_path: Path) -> None:
    text = "Der Fluß fließt über große Höhen – schön für Ärzte und Köche. " * 20
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        (tmp_path / f"{encoding}.txt").write_bytes(text.encode(encoding))
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 10)
    documents, drops = read(TextFolder(name="t", paths=(str(tmp_path),)))
    assert len(documents) == 4 and {d.text.strip() for d in documents} == {text.strip()}
    assert reasons(drops) == {"bad_encoding": 1}


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "El año pasado comió aquí más de un niño; después, ¿qué pasó con la señora García?"),
        ("cp1252", "L'été dernier, nous avons mangé des crêpes à la crème près de la forêt; le garçon était fatigué."),
        ("cp1252", "På sommaren åkte vi till ön där björken växer, och på kvällen grillade vi på ängen vid sjön."),
        ("cp1252", "Perché non c'è più la libertà di un tempo? Così è la città, e ciò è già noto."),
        ("cp1250", "Zażółć gęślą jaźń, a potem pójdź nad rzekę, gdzie rosną wysokie drzewa i śpiewają ptaki."),
        ("iso8859-2", "Zażółć gęślą jaźń, a potem pójdź nad rzekę, gdzie rosną wysokie drzewa i śpiewają ptaki."),
        ("cp1254", "Geçen yaz köye gittiğimizde büyük ağacın altında oturup çay içtik ve şarkılar söyledik."),
        ("cp1251", "Прошлым летом мы ходили в лес за грибами и нашли большую поляну у реки."),
    ],
)
def test_old_encodings_are_told_by_the_letters_of_one_language(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "old.txt").write_bytes(text.encode(encoding))
    (document,), _ = read(TextFolder(name="t", paths=(str(tmp_path),)))
    assert document.text == text
    assert decode_page(f"<p>{text}</p>".encode(encoding), "")[0] == f"<p>{text}</p>"


@pytest.mark.real_data
def test_wikitext_is_one_text_document(real_data: Path) -> None:
    path = real_data / "text" / "wikitext2-valid.txt"
    documents, drops = read(TextFolder(name="t", paths=(str(path),), licence="CC-BY-SA-3.0"))
    assert len(documents) == 1 and not drops and documents[0].text.encode() == path.read_bytes()
    assert documents[0].meta["licence"] == "CC-BY-SA-3.0"


def test_array_record_of_json_text_and_examples(tmp_path: Path) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_generated_pb2

    def write(name: str, records: list[bytes]) -> str:
        writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return str(tmp_path / name)

    example = tf_example_generated_pb2.Example()
    example.features.feature["body"].bytes_list.value.append(b"saluton")
    example.features.feature["stars"].int64_list.value.append(4)
    path = write("e.array_record", [example.SerializeToString(), b"\xff\xff\xff"])
    documents, drops = read(
        ArrayRecordSource(name="a", paths=(path,), record="example", text_field="body", meta_fields=("stars",))
    )
    assert documents[0].text == "saluton" and documents[0].meta["stars"] == 4 and reasons(drops) == {"bad_example": 1}
    path = write("j.array_record", [json.dumps(row).encode() for row in ROWS] + [b"{", b'{"text": 1}'])
    documents, drops = read(ArrayRecordSource(name="a", paths=(path,), records_per_shard=100))
    assert [d.text for d in documents] == [row["text"] for row in ROWS]
    assert reasons(drops) == {"bad_json": 1, "no_text_field": 1}
    Path(path).write_bytes(Path(path).read_bytes()[:5000])
    assert reasons(read(ArrayRecordSource(name="a", paths=(path,)))[1]) == {"corrupt_file": 1}


def prepare_tfds(folder: Path, texts: list[str]) -> str:
    """A dataset prepared by TFDS as ArrayRecord without TensorFlow; returns its version folder."""
    import numpy as np
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    with registered.skip_registration():  # a name is registered once a process, and this runs more often

        class Tiny(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": np.int64})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for number, text in enumerate(texts):
                    yield number, {"text": text, "n": number}

    builder = Tiny(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def test_tfds_is_read_without_tensorflow(tmp_path: Path) -> None:
    import sys

    texts = [f"Document {i} of a prepared dataset." for i in range(150)]
    path = prepare_tfds(tmp_path, texts)
    documents, drops = read(TfdsSource(name="tfds", path=path, meta_fields=("n",), records_per_shard=40))
    assert sorted(d.text for d in documents) == sorted(texts) and not drops
    assert all(d.text == texts[d.meta["n"]] for d in documents) and "tensorflow" not in sys.modules
    with pytest.raises(ValueError, match="no split 'test'"):
        TfdsSource(name="tfds", path=path, split="test").shards()


def test_hugging_face_datasets_are_streamed_and_a_broken_file_is_counted(tmp_path: Path) -> None:
    pytest.importorskip("datasets.load", reason="HfDatasetSource needs the package datasets, which is optional")
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(_jsonl([{**row, "id": number} for row in ROWS[:20]]))
    source = HfDatasetSource(name="h", path=str(tmp_path), meta_fields=("n",))
    key = source.inputs_key()
    documents, drops = read(source)
    assert [d.text for d in documents] == [row["text"] for row in ROWS[:20]] * 3 and not drops
    assert documents[21].id == "h:train:1:1" and documents[21].meta["n"] == 1
    (tmp_path / "1.jsonl").write_bytes(b'{"text": "good"}\n{"text": "broken\n')
    assert source.inputs_key() != key
    documents, drops = read(source)
    assert len(documents) >= 40 and reasons(drops) == {"corrupt_file": 1}
    assert reasons(read(HfDatasetSource(name="h", path=str(tmp_path), text_field="none"))[1])["no_text_field"] >= 40
    for wrong in ({"split": "test"}, {"path": str(tmp_path / "missing")}):
        with pytest.raises(ValueError, match=r"^dataset '.*', split '.*': "):
            HfDatasetSource(**{"name": "h", "path": str(tmp_path), **wrong}).shards()  # type: ignore[arg-type]


WIKI = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="eo"><siteinfo/>
<page><title>Paris</title><ns>0</ns><id>7</id><revision><id>9</id><timestamp>2024-01-02T03:04:05Z</timestamp>
<text xml:space="preserve">{{Infobox|a=b}} '''Paris''' is in [[France|the republic]] {{x}}.&lt;ref&gt;cite&lt;/ref&gt;

== History ==
* old &amp;amp; new
__NOTOC__
{| class="x"
| cell
|}
[[File:a.png|thumb|caption]] [[Category:Cities]]</text></revision></page>
<page><title>Redirect me</title><ns>0</ns><id>8</id><redirect title="Paris" />
<revision><text>#REDIRECT [[Paris]]</text></revision></page>
<page><title>Talk</title><ns>1</ns><id>9</id><revision><text>hi</text></revision></page>
<page><title>Broken</title><ns>0</ns><id>10</id><revision><text>x</revision></page>
<page><title>Last</title><ns>0</ns><id>11</id><revision><text>Still read.</text></revision></page>
</mediawiki>"""


def test_mediawiki_pages(tmp_path: Path) -> None:
    (tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(WIKI.encode()))
    documents, drops = read(MediaWikiSource(name="w", paths=(str(tmp_path),), language="eo"))
    assert [d.meta["title"] for d in documents] == ["Paris", "Last"]
    assert documents[0].text == "# Paris\n\nParis is in the republic.\n\n## History\n\n- old & new"
    assert documents[0].id == f"w:dump.xml.bz2:7@{WIKI.index('<page>')}"
    assert documents[0].meta["date"] == "2024-01-02T03:04:05Z"
    assert reasons(drops) == {"redirect": 1, "other_namespace": 1, "bad_xml": 1}


def test_wikitext_nests_without_end() -> None:
    assert isinstance(wikitext_to_text("[[" * 5000 + "x" + "]]" * 5000), str)
    assert isinstance(wikitext_to_text("{{" * 5000), str)


def test_xml_bombs_expand_nothing(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
    )
    page = "<page><title>x</title><id>1</id><revision><text>&j; end</text></revision></page>"
    (tmp_path / "bomb.xml").write_text(f"{bomb}]><mediawiki>{page}</mediawiki>")
    documents, _ = read(MediaWikiSource(name="w", paths=(str(tmp_path),)))
    assert isinstance(documents[0], Document) and len(documents[0].text) < 100


def test_the_same_name_below_two_file_addresses_and_globs_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(folder)
    found = list_files((f"file://{tmp_path}/a", f"file://{tmp_path}/b"), (".txt",))
    assert [(entry.key, entry.url) for entry in found] == [
        ("0/x.txt", str(tmp_path / "a" / "x.txt")),
        ("1/x.txt", str(tmp_path / "b" / "x.txt")),
    ]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [entry.key for entry in list_files(("~/*/x.txt",), (".txt",))] == ["a/x.txt", "b/x.txt"]

"""Mutated compression, tars and prepared datasets: what is more than one file of records."""

from __future__ import annotations

import bz2
import gzip
import io
import random
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from data.sources.array_records import TfdsSource
from data.sources.arxiv import ArxivSource
from data.sources.hf_datasets import HfDatasetSource
from data.sources.jats import JatsSource
from data.sources.jsonl import JsonlSource
from tests.data.sources.fuzz_files import ndjson, of
from tests.data.sources.record_counts import lines_of
from tests.data.sources.test_disk_sources import ROWS, prepare_tfds
from tests.data.sources.wounds import SIZES, check, confuse_json, read_all, wound

TEXT = ndjson(ROWS[:200])
PAPERS = ("1706.00001.gz", "1706.00002.gz", "1706.00003.pdf")
PAPER = b"\\documentclass{a}\\title{T}\\begin{document}\\section{S} Text of the paper.\\end{document}"


def parts(compress: Callable[[bytes], bytes]) -> bytes:
    """The rows as four members, frames or streams."""
    rows = TEXT.splitlines(keepends=True)
    return b"".join(compress(b"".join(rows[at : at + 50])) for at in range(0, 200, 50))


def unzstd(data: bytes) -> bytes:
    text = b""
    while data:
        frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        text += frame.decompress(data)
        if not frame.eof:
            raise EOFError
        data = frame.unused_data
    return text


def unbz2(data: bytes) -> bytes:
    """bz2.decompress takes what follows the first stream and is none for padding, which would hide a lost stream."""
    text = b""
    while data:
        stream = bz2.BZ2Decompressor()
        text += stream.decompress(data)
        if not stream.eof:
            raise EOFError
        data = stream.unused_data
    return text


COMPRESSED: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes], bytes]] = {
    "gz": (gzip.compress, gzip.decompress, b"\x1f\x8b"),
    "zst": (zstandard.compress, unzstd, b"\x28\xb5\x2f\xfd"),
    "bz2": (bz2.compress, unbz2, b"BZh"),
}


@SIZES
@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_lines(kind: str, cases: int, tmp_path: Path) -> None:
    """A file that decodes gives all of its lines; one that does not, what stands before the fault and one drop."""
    compress, whole, magic = COMPRESSED[kind]
    path = tmp_path / f"x.jsonl.{kind}"

    def look(case: int, wounded: bytes) -> None:
        kept, dropped, ids = read_all(of(JsonlSource)(str(path)))
        if not wounded.startswith(magic):
            return
        try:
            seen = lines_of(whole(wounded))
        except (OSError, EOFError, zlib.error, zstandard.ZstdError):
            assert f"f:{path.name}:end" in ids, f"case {case}: the fault is not counted"
        else:
            assert kept + dropped == seen, f"case {case}: {kept} kept and {dropped} dropped of {seen}"

    wound(parts(compress), path, cases, 11, look)


def tar(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def wanted_members(data: bytes, suffixes: tuple[str, ...]) -> int | None:
    """Members that are read, the one in which the archive breaks with them; None where it is no tar."""
    if data[257:262] != b"ustar":
        return None
    count = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as archive:
            for member in archive:
                if member.size > len(data) or member.issparse():  # the reader ends at a sparse member
                    return None
                wanted = member.name.lower().endswith(suffixes)
                count += wanted and (member.isfile() or member.issym() or member.islnk())
                if wanted and member.isfile():
                    opened = archive.extractfile(member)
                    count -= opened is None
                    _ = opened.read() if opened else b""
    except (tarfile.TarError, EOFError):
        return None  # in the middle of a member or between two: the fault is one drop, and is asserted by the caller
    return count


@SIZES
@pytest.mark.real_data
def test_tars_of_articles(cases: int, real_data: Path, tmp_path: Path) -> None:
    articles = sorted((real_data / "jats").glob("*.nxml"))
    members = [(f"é{'x' * 120}/{path.name}", path.read_bytes()[:20_000]) for path in articles]
    path = tmp_path / "x.tar"

    def look(case: int, wounded: bytes) -> None:
        kept, dropped, _ = read_all(of(JatsSource)(str(path)))
        seen = wanted_members(wounded, (".xml", ".nxml"))
        assert seen in (kept + dropped, None), f"case {case}: {kept} kept and {dropped} dropped of {seen}"

    wound(tar([*members, *members[:1], ("licence.txt", b"x")]), path, cases, 12, look, confuse_tar)


@SIZES
@pytest.mark.real_data
def test_tars_of_papers(cases: int, real_data: Path, tmp_path: Path) -> None:
    paper = (real_data / "arxiv" / "emcee-ms.tex").read_bytes()[:20_000]
    inner = gzip.compress(tar([("ms.tex", b"\\input{a}" + PAPER), ("a.tex", paper), ("../up.tex", PAPER)]))
    members = [("17/1706.00001.gz", inner), ("17/1706.00002.gz", gzip.compress(paper)), ("17/1706.00003.pdf", b"%PDF")]
    path = tmp_path / "arXiv_src_1706_001.tar"

    def look(case: int, wounded: bytes) -> None:
        kept, dropped, _ = read_all(of(ArxivSource)(str(path)))
        seen = wanted_members(wounded, tuple(f"/{name}" for name in PAPERS))
        least = 1 if seen is None else seen  # what is dropped inside of a paper counts besides
        assert kept + dropped >= (least if wounded.strip(b"\0") else 0), f"case {case}: {kept} and {dropped} of {least}"

    wound(tar([*members, *members[:2]]), path, cases, 13, look, confuse_tar)


def confuse_tar(data: bytes, rng: random.Random) -> bytes:
    """Headers with another name, type or size and the right checksum."""
    out = bytearray(data)
    heads = [at for at in range(0, len(out), 512) if out[at + 257 : at + 262] == b"ustar"]
    for at in rng.sample(heads, min(2, len(heads))):
        kind = rng.randrange(3)
        if kind == 0:
            out[at : at + 100] = rng.choice((b"../x.xml", b"\xff\xfe.nxml", b"1706.00001.gz", b"")).ljust(100, b"\0")
        elif kind == 1:
            out[at + 156] = rng.choice(b"0125LKxgSXA7\xff")
        else:
            out[at + 124 : at + 136] = (
                rng.choice((b"0" * 11, b"7" * 11, b"00000001000", b"\xff" * 11, b"z" * 11)) + b"\0"
            )
        out[at + 148 : at + 156] = b" " * 8
        out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


@SIZES
def test_prepared_datasets(cases: int, tmp_path: Path) -> None:
    folder = Path(prepare_tfds(tmp_path, [f"Document {i}." for i in range(60)]))
    path = next(folder.glob("*.array_record*"))

    def look(case: int, wounded: bytes) -> None:
        kept, dropped = check(TfdsSource(name="f", path=str(folder)))
        assert kept + dropped == 60, f"case {case}: {kept} kept and {dropped} dropped of 60"

    wound(path.read_bytes(), path, min(cases, 200), 14, look)


@SIZES
def test_hugging_face_files(cases: int, tmp_path: Path) -> None:
    if not hasattr(pytest.importorskip("datasets"), "load_dataset"):
        pytest.skip("the package datasets, which is optional")
    (tmp_path / "0.jsonl").write_bytes(TEXT)

    def look(case: int, wounded: bytes) -> None:
        source = HfDatasetSource(name="f", path=str(tmp_path))
        kept, dropped = check(source)
        assert kept + dropped >= lines_of(TEXT) + 1, f"case {case}: {kept} kept and {dropped} dropped"

    wound(TEXT, tmp_path / "1.jsonl", min(cases, 100), 15, look, confuse_json)

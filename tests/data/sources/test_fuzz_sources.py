"""Every reader on thousands of mutated real files: no crash, no hang, and the books balance."""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.sources.array_records import ArrayRecordSource
from data.sources.epub import EpubSource
from tests.data.sources.fuzz_files import MADE, PAGE, REAL, array_records, wat
from tests.data.sources.record_counts import RECORDS, whole_members
from tests.data.sources.wounds import check, confuse, confuse_json, confuse_rows, confuse_xml, read_all, wound


def fuzz(reader: str, data: bytes, folder: Path, cases: int, seed: int) -> None:
    """Half of the cases wound the bytes, half the structure where the format has one."""
    name, make = (REAL.get(reader) or MADE[reader])[1:]

    def look(case: int, wounded: bytes) -> None:
        kept, dropped, offsets = read_all(make(str(folder / name)))
        if reader in RECORDS and wounded.strip():
            seen = RECORDS[reader](wounded)
            assert seen in (kept + dropped, None), f"case {case}: {kept} kept and {dropped} dropped of {seen}"
        elif reader in WHOLE and wounded.strip():
            books = [found for found in offsets if found in (f"f:{name}", f"f:{name}:end")]
            assert len(books) == 1, f"case {case}: {books}, and its parts {list(offsets)}"
        elif reader in ("warc", "wet"):
            assert whole_members(wounded) <= set(offsets.values()), f"case {case} lost a whole record"
        elif wounded.strip() and reader != "wat":  # whose records may have become of a type that is not read
            assert kept + dropped > 0, f"case {case} left no trace"

    (folder / name).write_bytes(data)
    assert sum(check(make(str(folder / name)))) > 0, "the file is read before it is wounded"
    wound(data, folder / name, cases, seed, look, CONFUSE.get(reader))


WHOLE = ("epub", "forum_pages")  # a record is the file; what is lost inside it is dropped besides, with its own id
JSON_READERS = ("jsonl", "reddit", "twitter", "twitter_pages", "discourse", "notebook", "notebook_3")
CONFUSE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    **dict.fromkeys(JSON_READERS, confuse_json),
    "wat": lambda data, rng: wat(Path(), confuse(PAGE, rng)),
    **dict.fromkeys(("jats", "pubmed", "oai"), confuse_xml),
    "stack_exchange": confuse_rows,
}


def seed_of(reader: str, folder: Path, real_data: Path | None) -> bytes:
    """The file that is wounded."""
    if reader in MADE:
        return MADE[reader][0](folder)
    assert real_data is not None
    data = (real_data / REAL[reader][0]).read_bytes()
    return data[:80_000].rpartition(b"\n")[0] if reader in ("text", "stack_exchange") else data


@pytest.mark.real_data
@pytest.mark.parametrize("reader", REAL)
def test_mutated_real_files(reader: str, real_data: Path, tmp_path: Path) -> None:
    fuzz(reader, seed_of(reader, tmp_path, real_data), tmp_path, 12, 1)


@pytest.mark.parametrize("reader", MADE)
def test_mutated_made_files(reader: str, tmp_path: Path) -> None:
    fuzz(reader, seed_of(reader, tmp_path, None), tmp_path, 40, 2)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("reader", [*REAL, *MADE])
def test_thousands_of_mutations(reader: str, real_data: Path, tmp_path: Path) -> None:
    """SLUICE_FUZZ_CASES sets the number for each reader."""
    cases = int(os.environ.get("SLUICE_FUZZ_CASES", "200"))
    fuzz(reader, seed_of(reader, tmp_path, real_data), tmp_path, cases, 3)


def test_mutated_array_records(tmp_path: Path) -> None:
    """The reader below is C++, with checksums of its own: what does not match is a counted drop."""
    from array_record.python.array_record_module import ArrayRecordReader

    def look(case: int, wounded: bytes) -> None:
        try:
            seen = max(ArrayRecordReader(str(path)).num_records(), 1)
        except RuntimeError:
            seen = 1
        kept, dropped = check(ArrayRecordSource(name="f", paths=(str(path),)))
        assert kept + dropped == seen, f"case {case}: {kept} kept and {dropped} dropped of {seen}"

    path = tmp_path / "x.array_record"
    wound(array_records(tmp_path), path, 100, 5, look)


def test_zip_members_never_leave_their_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.epub", "w") as book:
        book.writestr("../../outside", "x")
        book.writestr("META-INF/container.xml", '<c><rootfile full-path="../../../etc/passwd"/></c>')
    documents, drops = check(EpubSource(name="f", paths=(str(tmp_path),)))
    assert documents == 0 and drops == 1 and not (tmp_path.parent.parent / "outside").exists()

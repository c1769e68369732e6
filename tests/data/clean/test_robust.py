"""Whatever a text holds, every recipe ends soon with a verdict."""

from __future__ import annotations

import time

import pytest

from data.clean.recipes import basic, books, code, dialogue, papers, prose, web_en
from data.clean.step import clean_document
from data.document import Document, Dropped
from data.tables import write_documents, write_dropped
from tests.data.clean.samples import PROSE

RECIPES = (basic, prose, code, web_en, books, papers, dialogue)
SIZE = 100_000  # characters
SECONDS = 1.0  # per MB and step, as the clock of this process counts
TRAPS = {
    "empty": "",
    "a@": "a@" * (SIZE // 2),
    "one word": "x" * SIZE,
    "one digit": "1" * SIZE,
    "digits apart": "1 " * (SIZE // 2),
    "dots": "." * SIZE,
    "colons": ":" * SIZE,
    "hex groups": "ab:" * (SIZE // 3),
    "dotted": "1." * (SIZE // 2),
    "brackets": "[" * SIZE,
    "spaces": " " * SIZE,
    "newlines": "\n" * SIZE,
    "hyphens": "a-" * (SIZE // 2),
    "iban-like": "GB82" * (SIZE // 4),
    "key": "-----BEGIN PRIVATE KEY-----" * (SIZE // 27),
    "urls": "http://a:" * (SIZE // 9),
    "tokens": "eyJ." * (SIZE // 4),
    "assignments": "token='" * (SIZE // 7),
    "plus": "+1" * (SIZE // 2),
    "joiners": "\u200d" * SIZE,
    "marks": "e" + "\u0301" * SIZE,
    "right to left": "שלום עולם " * (SIZE // 10),
    "surrogates": "\ud800a" * (SIZE // 2),
    "mixed encodings": "sÃ©ance â€œquotedâ€\x9d " * (SIZE // 20),
    "one line of prose": PROSE.replace("\n", " ") * (SIZE // len(PROSE)),
    "all the same lines": "the same line\n" * (SIZE // 14),
    "numbers": "12345678 " * (SIZE // 9),
    "unknown script": "ᚠᚢᚦᚨᚱᚲ " * (SIZE // 7),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_step_ends_within_its_time(trap: str) -> None:
    text = TRAPS[trap]
    for recipe in RECIPES:
        steps = len(recipe().steps)
        start = time.process_time()
        result = clean_document(recipe(), Document(id="trap", text=text, source="s"))
        seconds = time.process_time() - start
        assert isinstance(result, Document | Dropped)
        assert seconds < SECONDS * steps * max(0.5, len(text) / 1e6), recipe.__name__


def test_results_can_be_stored(tmp_path) -> None:
    results = [
        clean_document(recipe(), Document(id=f"{recipe.__name__}-{trap}", text=text[:2000], source="s"))
        for recipe in RECIPES
        for trap, text in TRAPS.items()
    ]
    kept = [result for result in results if isinstance(result, Document)]
    dropped = [result for result in results if isinstance(result, Dropped)]
    stored = write_documents(tmp_path / "kept.parquet", kept) + write_dropped(tmp_path / "dropped.parquet", dropped)
    assert stored == len(results)


@pytest.mark.slow
def test_time_grows_with_the_text_and_no_faster() -> None:
    times = []
    for megabytes in (2, 8):
        text = (PROSE.replace(". ", " ") + " ") * (megabytes * 1_000_000 // len(PROSE))
        start = time.process_time()
        clean_document(web_en(), Document(id="long", text=text[: megabytes * 1_000_000], source="s"))
        times.append(time.process_time() - start)
    assert times[1] < times[0] * 4 * 1.8

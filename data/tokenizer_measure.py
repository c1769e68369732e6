"""What a tokenizer makes of texts: length in tokens, cost against other languages, bytes, failures, pieces in use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import regex

from data.languages import UNKNOWN, language_of, script_of
from data.tables import read_documents
from data.tokenizer import Tokenizer

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’][\p{L}\p{M}]+)*")
BYTE_PIECE = regex.compile(r"<0x[0-9A-F]{2}>")
# Written without spaces between words, so that a run of letters is not a word (Unicode names of the scripts).
WITHOUT_SPACES = frozenset(["CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"])
SCRIPT_SAMPLE = 2000  # characters whose script is looked up
LONGEST = 8  # tokens that are shown

Group = tuple[str, str]  # language, domain


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Of the texts of one language and domain with one tokenizer.

    words: None where the script has no spaces between them. fallback: tokens that are one byte of a character that has
    no piece, or bytes that are no whole characters. failures: texts that do not come back from their ids.
    used: different ids. longest: the longest tokens in use, as text.
    """

    documents: int
    num_bytes: int
    characters: int
    words: int | None
    tokens: int
    fallback: int
    failures: int
    used: int
    longest: tuple[str, ...]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes a token."""
        return self.num_bytes / self.tokens

    @property
    def fertility(self) -> float | None:
        """Tokens a word."""
        return self.tokens / self.words if self.words else None

    @property
    def fallback_share(self) -> float:
        """Share of tokens that are single bytes or unknown."""
        return self.fallback / self.tokens


def measure(tokenizer: Tokenizer, texts: Sequence[str]) -> Measures:
    """Measures of texts, at least one of which is not empty."""
    encoded = tokenizer.encode_batch(texts)
    ids, counts = np.unique(np.concatenate(encoded), return_counts=True)
    parts = {int(token): tokenizer.decode([int(token)]) for token in ids}
    fallback = sum(
        int(count)
        for token, count in zip(ids, counts)
        if BYTE_PIECE.fullmatch(tokenizer.piece(int(token))) or "\ufffd" in parts[int(token)]
    )
    return Measures(
        documents=len(texts),
        num_bytes=sum(len(text.encode()) for text in texts),
        characters=sum(map(len, texts)),
        words=None if _has_no_spaces(texts) else sum(len(WORD.findall(text)) for text in texts),
        tokens=int(counts.sum()),
        fallback=fallback,
        failures=sum(tokenizer.decode(one.tolist()) != text for text, one in zip(texts, encoded)),
        used=len(ids),
        longest=tuple(sorted(parts.values(), key=lambda part: (-len(part), part))[:LONGEST]),
    )


def premiums(tokenizer: Tokenizer, parallel: Mapping[str, Sequence[str]], reference: str) -> dict[str, float]:
    """Tokens of each language over those of the reference language, on the same text (Petrov et al. 2023)."""
    if reference not in parallel:
        known = ", ".join(sorted(parallel))
        raise ValueError(f"the parallel text has no {reference!r} to compare with; it has {known}")
    tokens = {language: sum(map(len, tokenizer.encode_batch(list(texts)))) for language, texts in parallel.items()}
    return {language: count / tokens[reference] for language, count in tokens.items()}


def read_groups(paths: Iterable[Path], max_bytes: int) -> dict[Group, list[str]]:
    """Texts by language and domain, the first `max_bytes` UTF-8 bytes of each.

    A path is a dataset folder, a folder of LANGUAGE.txt files, or a .parquet, .jsonl (text, language, domain) or .tsv
    (language, tab, text) file. Raises ValueError in one line for a file without text or of another kind.
    """
    groups: dict[Group, list[str]] = {}
    sizes: dict[Group, int] = {}
    for path in paths:
        found = 0
        for language, domain, text in _texts(path):
            found += bool(text.strip())
            group = (language, domain)
            if text.strip() and sizes.get(group, 0) < max_bytes:
                groups.setdefault(group, []).append(text)
                sizes[group] = sizes.get(group, 0) + len(text.encode())
        if not found:
            raise ValueError(f"{path}: no text")
    return dict(sorted(groups.items()))


def _texts(path: Path) -> Iterator[tuple[str, str, str]]:
    readers: dict[str, Callable[[Path], Iterator[tuple[str, str, str]]]] = {
        ".parquet": _parquet,
        ".jsonl": _jsonl,
        ".tsv": _tsv,
        ".txt": _tsv,
    }
    if path.is_dir() and (path / "documents").is_dir():
        for shard in sorted((path / "documents").glob("*.parquet")):
            yield from _parquet(shard)
    elif path.is_dir() and (files := sorted(path.glob("*.txt"))):
        for file in files:
            text = file.read_text(encoding="utf-8")
            if not text.strip():
                raise ValueError(f"{file}: language {file.stem} has no text")
            yield from ((file.stem, path.name, line) for line in text.splitlines(keepends=True))
    elif path.is_file() and path.suffix in readers:
        yield from readers[path.suffix](path)
    else:
        raise ValueError(f"{path}: expected a dataset, a folder of LANGUAGE.txt, or a .parquet, .jsonl or .tsv file")


def _parquet(path: Path) -> Iterator[tuple[str, str, str]]:
    for document in read_documents(path):
        yield language_of(document), document.source, document.text


def _jsonl(path: Path) -> Iterator[tuple[str, str, str]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise ValueError(f"{path}, line {number}: expected an object with text and language")
            yield str(row.get("language") or UNKNOWN), str(row.get("domain") or path.stem), row["text"]


def _tsv(path: Path) -> Iterator[tuple[str, str, str]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            language, tab, text = line.rstrip("\n").partition("\t")
            if not tab:
                raise ValueError(f"{path}, line {number}: expected a language, a tab and a text")
            yield language, path.stem, text


def _has_no_spaces(texts: Sequence[str]) -> bool:
    letters = [character for character in "".join(texts)[:SCRIPT_SAMPLE] if character.isalpha()]
    return sum(_script(character) in WITHOUT_SPACES for character in letters) > len(letters) / 2


@cache
def _script(character: str) -> str:
    return script_of(character)

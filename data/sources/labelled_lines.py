"""Lines of one file of an installed package, each with its language: `LANGUAGE<tab>TEXT`.

    LabelledLines(name="eld", package="eld", file="tests/data/big-test.txt", languages=("el", "en"))

reads the labelled sentences that the package eld (PyPI, Apache-2.0) brings: 1,000 in each of 60 languages.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from data.document import Document, Dropped
from data.sources.base import make_document, make_drop

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class LabelledLines:
    """One document a line; meta has its language.

    package: importable name; its code is not run. file: path inside the package. languages: those that are read, each
    of which must be there; empty for all. max_lines: of each language, the first ones; None for all.

    Raises ValueError in one line where the package or the file is missing or a language has no line.
    """

    name: str
    package: str
    file: str
    languages: tuple[str, ...] = ()
    max_lines: int | None = None

    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = ("data.sources.base", "data.sources.labelled_lines")
    libraries: ClassVar[tuple[str, ...]] = ()

    def path(self) -> Path:
        """Where the file lies."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise ValueError(
                f"source {self.name}: package {self.package!r} is not installed: pip install {self.package}"
            )
        path = Path(spec.origin).parent / self.file
        if not path.is_file():
            raise ValueError(f"source {self.name}: {path} is not there; another version of {self.package}?")
        return path

    def shards(self) -> Sequence[dict[str, Any]]:
        """One shard: the file."""
        return [{"file": self.file}]

    def documents(self, shard: dict[str, Any]) -> Iterator[Document | Dropped]:
        """The lines in order; one without a tab is a drop."""
        seen: Counter[str] = Counter()
        with self.path().open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines):
                language, tab, text = line.rstrip("\r\n").partition("\t")
                if not tab:
                    yield make_drop(self.name, str(number), "no_language", text=line)
                    continue
                if self.languages and language not in self.languages:
                    continue
                seen[language] += 1
                if self.max_lines is None or seen[language] <= self.max_lines:
                    yield make_document(self.name, str(number), text, {"language": language})
        absent = [language for language in self.languages if not seen[language]]
        if absent:
            raise ValueError(f"source {self.name}: no text in {', '.join(absent)} in {self.path()}")

    def inputs_key(self) -> Any:
        """Size and hash of the file."""
        content = self.path().read_bytes()
        return [len(content), xxhash.xxh3_128_hexdigest(content)]

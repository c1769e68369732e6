"""Named evaluation sets in files: what training documents must not contain."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from data.document import Document
from data.tables import read_documents

VERSION = 1
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """One evaluation set.

    name: how partners are called (NAME:PLACE). path: .jsonl or .jsonl.gz (one object a line), .txt (texts apart by an
    empty line) or .parquet (a document shard). fields: the keys of a JSON object whose strings, or lists of strings,
    make the text, joined by new lines; keys that are missing count as empty.
    """

    name: str
    path: str
    fields: tuple[str, ...] = ("text",)

    def inputs_key(self) -> Any:
        """The content of the file, for the stage key."""
        digest = xxhash.xxh3_128()
        with self._file().open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return [self.name, digest.hexdigest()]

    def documents(self) -> Iterator[Document]:
        """The examples, as documents with ids NAME:PLACE. Raises ValueError naming file and line."""
        for place, text in enumerate(self._texts()):
            yield Document(id=f"{self.name}:{place}", text=text, source=self.name)

    def _file(self) -> Path:
        path = Path(self.path)
        if not path.is_file():
            raise ValueError(f"evaluation set {self.name!r}: no file {self.path}")
        return path

    def _texts(self) -> Iterator[str]:
        path = self._file()
        if path.suffix == ".parquet":
            yield from (document.text for document in read_documents(path))
        elif path.suffix == ".txt":
            yield from (text for text in path.read_text(encoding="utf-8").split("\n\n") if text.strip())
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            yield from self._json_lines(path)
        else:
            raise ValueError(f"evaluation set {self.name!r}: {path.name} is none of .jsonl, .jsonl.gz, .txt, .parquet")

    def _json_lines(self, path: Path) -> Iterator[str]:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"evaluation set {self.name!r}: {path}, line {number}: not JSON: {error}"
                    ) from error
                if not isinstance(record, dict) or not any(key in record for key in self.fields):
                    raise ValueError(
                        f"evaluation set {self.name!r}: {path}, line {number}: expected an object with "
                        f"{' or '.join(map(repr, self.fields))}; set EvaluationSet.fields"
                    )
                values = (record.get(key, "") for key in self.fields)
                yield "\n".join(
                    part for value in values for part in (value if isinstance(value, list) else [str(value)])
                )

"""Datasets of the Hugging Face `datasets` library, where it is installed: streamed, no dataset script is run.

HfDatasetSource(name="fineweb", path="HuggingFaceFW/fineweb", config="sample-10BT", text_field="text")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import make_document, make_drop


@dataclass(frozen=True, kw_only=True)
class HfDatasetSource:
    """One split of a hub dataset, or of a local folder in a format that the library reads.

    revision: a commit hash pins the content; without it the name alone identifies the input.
    """

    name: str
    path: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_field: str = "text"
    meta_fields: tuple[str, ...] = ()
    licence: str | None = None
    language: str | None = None

    version: ClassVar[int] = 2
    code_modules: ClassVar[tuple[str, ...]] = ("data.sources.hf_datasets", "data.sources.base")
    libraries: ClassVar[tuple[str, ...]] = ()

    def shards(self) -> Sequence[dict[str, Any]]:
        """One shard a file of the dataset."""
        count = max(int(getattr(self._stream(), "num_shards", 1)), 1)
        return [{"index": index, "count": count} for index in range(count)]

    def inputs_key(self) -> Any:
        """Path, config, split and revision; of a local folder its files."""
        folder = Path(self.path).expanduser()
        found = files.list_files((str(folder),), ()) if folder.is_dir() else []
        content = [[entry.key, entry.size, files.fingerprint(entry)] for entry in found]
        return [self.path, self.config, self.split, self.revision, content]

    def documents(self, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document a row; where the library cannot read on, the rest of the shard is one counted drop."""
        stream = self._stream()
        if shard["count"] > 1:
            stream = stream.shard(num_shards=shard["count"], index=shard["index"])
        try:
            for row, values in enumerate(stream):
                yield self._document(f"{self.split}:{shard['index']}:{row}", values)
        except Exception as error:  # every format behind the library has its own errors
            value = f"{type(error).__name__}: {error}"
            yield make_drop(self.name, f"{self.split}:{shard['index']}:end", "corrupt_file", value=value)

    def _document(self, record: str, values: Mapping[str, Any]) -> Document | Dropped:
        text = values.get(self.text_field)
        if not isinstance(text, str):
            return make_drop(self.name, record, "no_text_field", value=self.text_field)
        meta = {name: values.get(name) for name in self.meta_fields}
        meta.update(dataset=self.path, licence=self.licence, language=self.language)
        return make_document(self.name, record, text, meta)

    def _stream(self) -> Any:
        try:
            from datasets import load_dataset  # by name: a folder of datasets is a module of its own
        except ImportError as error:
            raise ValueError("HfDatasetSource needs the `datasets` package: pip install datasets") from error
        try:
            return load_dataset(self.path, self.config, split=self.split, revision=self.revision, streaming=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"dataset {self.path!r}, split {self.split!r}: {str(error).splitlines()[0]}") from error

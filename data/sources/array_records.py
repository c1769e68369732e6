"""ArrayRecord files, and datasets that TFDS prepared: random access, read without TensorFlow.

ArrayRecordSource(name="docs", paths=("docs-*.array_record",), record="example", text_field="text")
TfdsSource(name="reviews", path="~/tensorflow_datasets/imdb_reviews/plain_text/1.0.0", text_field="text")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource, make_document, make_drop
from data.sources.jsonl import lookup, parse_object
from data.sources.limits import CorruptError
from data.sources.remote import is_remote, local_copy

READ_RECORDS = 64  # records fetched by one call: one at a time is tens of times slower
RECORD_KINDS = ("text", "json", "example")


@dataclass(frozen=True, kw_only=True)
class ArrayRecordSource(FileSource):
    """Records of ArrayRecord files, such as x.array_record-00000-of-00004 by a glob; remote ones through the cache.

    record: "text" (UTF-8), "json" (an object), or "example" (a serialised tf.train.Example).
    text_field, meta_fields: keys of the object or features of the example.
    records_per_shard: records that one worker reads.
    """

    record: str = "json"
    text_field: str = "text"
    meta_fields: tuple[str, ...] = ()
    records_per_shard: int = 100_000

    suffixes: ClassVar[tuple[str, ...]] = (".array_record", ".arrayrecord")
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.array_records",
        "data.sources.jsonl",
    )
    libraries: ClassVar[tuple[str, ...]] = ("array_record", "tensorflow-datasets")

    def __post_init__(self) -> None:
        if self.record not in RECORD_KINDS:
            raise ValueError(f"record is {self.record!r}: expected one of {', '.join(RECORD_KINDS)}")

    def shards(self) -> Sequence[dict[str, Any]]:
        """Ranges of records: {"url", "key", "start", "stop"}; a file that is remote or does not open is one shard."""
        shards: list[dict[str, Any]] = []
        for entry in self.entries():
            whole = {"url": entry.url, "key": entry.key}
            try:
                count = 0 if is_remote(entry.url) else _open(entry.url).num_records()
            except CorruptError:
                count = 0
            if not count:
                shards.append(whole)
                continue
            size = self.records_per_shard
            starts = range(0, count, size)
            shards += [{**whole, "start": start, "stop": min(start + size, count)} for start in starts]
        return shards

    def file_documents(self, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document a record; a block of records that does not read is a counted drop for each of them."""
        reader = _open(shard["url"])
        start, stop = shard.get("start", 0), shard.get("stop", reader.num_records())
        for first in range(start, stop, READ_RECORDS):
            numbers = list(range(first, min(first + READ_RECORDS, stop)))
            try:
                for number, data in zip(numbers, reader.read(numbers)):
                    yield self._document(shard, number, data)
            except (RuntimeError, ValueError, IndexError) as error:
                for number in numbers:
                    yield self.drop(shard, number, "corrupt_record", value=str(error).split("\n")[0])

    def _document(self, shard: Mapping[str, Any], number: int, data: bytes) -> Document | Dropped:
        if len(data) > self.limits.max_record_bytes:
            return self.too_large(shard, number, len(data))
        try:
            if self.record == "text":
                return self.document(shard, number, data.decode(), record=number)
            values = decode_example(data) if self.record == "example" else parse_object(data)[0]
            if values is None:
                return self.drop(shard, number, "bad_json")
            text = lookup(values, self.text_field) if self.record == "json" else values.get(self.text_field)
            text = text.decode() if isinstance(text, bytes) else text
        except UnicodeDecodeError:
            return self.drop(shard, number, "bad_encoding")
        except ValueError as error:
            return self.drop(shard, number, "bad_example", value=str(error))
        if not isinstance(text, str):
            return self.drop(shard, number, "no_text_field", value=self.text_field)
        meta = {name: _plain(values.get(name)) for name in self.meta_fields}
        return self.document(shard, number, text, record=number, **meta)


def _open(url: str) -> Any:
    """A reader of a local file. ArrayRecordReader opens a remote path as 0 records without an error, hence the copy."""
    from array_record.python.array_record_module import ArrayRecordReader

    path = local_copy(url) if is_remote(url) else url
    try:
        reader = ArrayRecordReader(path)
        if reader.num_records() == 0:  # which is also how a file without its end opens
            raise CorruptError("no records: the file is empty or its end is missing")
        return reader
    except RuntimeError as error:
        raise CorruptError(str(error).split("\n")[0]) from error


def decode_example(data: bytes) -> dict[str, Any]:
    """A tf.train.Example as {feature: value or list of values}. ValueError where the bytes are none."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_generated_pb2

    example = tf_example_generated_pb2.Example()
    try:
        example.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    values: dict[str, Any] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        items = list(getattr(feature, kind).value) if kind else []
        values[name] = items[0] if len(items) == 1 else items
    return values


def _plain(value: Any) -> Any:
    """JSON value of what a record holds: bytes as text, numpy scalars as Python's."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value


@dataclass(frozen=True, kw_only=True)
class TfdsSource:
    """One split of a dataset that TFDS prepared as ArrayRecord.

    path: the prepared version's folder (it holds dataset_info.json).
    text_field, meta_fields: feature names; dots reach into nested features.
    """

    name: str
    path: str
    split: str = "train"
    text_field: str = "text"
    meta_fields: tuple[str, ...] = ()
    licence: str | None = None
    language: str | None = None
    records_per_shard: int = 100_000

    version: ClassVar[int] = 2
    code_modules: ClassVar[tuple[str, ...]] = ("data.sources.array_records", "data.sources.base")
    libraries: ClassVar[tuple[str, ...]] = ("tensorflow-datasets", "array_record")

    def shards(self) -> Sequence[dict[str, Any]]:
        """Ranges of examples."""
        count = len(self._data())
        return [
            {"start": start, "stop": min(start + self.records_per_shard, count)}
            for start in range(0, count, self.records_per_shard)
        ]

    def inputs_key(self) -> Any:
        """[name, bytes, fingerprint] of the split's files and of the dataset's description."""
        folder = str(Path(self.path).expanduser())
        entries = files.list_files((f"{folder}/*-{self.split}.array_record*", f"{folder}/dataset_info.json"), ())
        return [[entry.key, entry.size, files.fingerprint(entry)] for entry in entries]

    def documents(self, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document an example."""
        data = self._data()
        for first in range(shard["start"], shard["stop"], READ_RECORDS):
            numbers = list(range(first, min(first + READ_RECORDS, shard["stop"])))
            try:
                for number, example in zip(numbers, data.__getitems__(numbers)):
                    yield self._document(number, example)
            except (RuntimeError, ValueError, IndexError) as error:
                for number in numbers:
                    yield make_drop(self.name, f"{self.split}:{number}", "corrupt_record", value=str(error)[:200])

    def _document(self, number: int, example: Mapping[str, Any]) -> Document | Dropped:
        record, text = f"{self.split}:{number}", lookup(example, self.text_field)
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError:
                return make_drop(self.name, record, "bad_encoding")
        if not isinstance(text, str):
            return make_drop(self.name, record, "no_text_field", value=self.text_field)
        meta = {name: _plain(lookup(example, name)) for name in self.meta_fields}
        meta.update(record=number, split_name=self.split, licence=self.licence, language=self.language)
        return make_document(self.name, record, text, meta)

    def _data(self) -> Any:
        import tensorflow_datasets as tfds

        folder = Path(self.path).expanduser()
        if not (folder / "dataset_info.json").is_file():
            raise ValueError(
                f"{folder} holds no dataset_info.json: expected a version folder that TFDS prepared, such as NAME/1.0.0"
            )
        builder = tfds.builder_from_directory(folder)
        if self.split not in builder.info.splits:
            raise ValueError(f"no split {self.split!r} in {folder}; it has {', '.join(builder.info.splits)}")
        return builder.as_data_source(split=self.split)

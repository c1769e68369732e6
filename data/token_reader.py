"""Reading token shards: the index as arrays in a memory-mapped file, ids by place in a source's stream."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from array_record.python.array_record_module import ArrayRecordReader

from data.store import STORE_NOTE, at_hand
from data.token_shards import INDEX_FILE
from data.tokenizer import Tokenizer, load_tokenizer

DEFAULT_CACHE_BYTES = 256 << 20
SHARDS_OPEN = 64  # at once, each a file descriptor; opening one again takes 0.1 ms


@dataclass(frozen=True, kw_only=True)
class SourceIndex:
    """The documents of one source in stream order.

    first: row of its first document in the whole index. num_tokens, num_bytes: int64, one a document.
    begins: int64, where each document's first id stands in the source's stream.
    whole: whether documents must not be cut. second: int64, of preferences: ids of the chosen chat, which comes first.
    """

    name: str
    first: int
    num_tokens: np.ndarray
    num_bytes: np.ndarray
    begins: np.ndarray
    weighted: bool
    whole: bool = False
    second: np.ndarray | None = None

    @property
    def documents(self) -> int:
        return len(self.num_tokens)

    @property
    def tokens(self) -> int:
        return int(self.num_tokens.sum())


class TokenReader:
    """One split of a dataset, opened: `index` by source, `ids(source, start, stop)` at random.

    Raises ValueError in one line at opening when the index or a shard is missing, truncated or does not hold as many
    records as the index says. Of the shards, the SHARDS_OPEN used last are open. Safe to use from several threads.
    Shards of a dataset that is kept in a store (data.store) are brought, and looked at so, when they are first read.
    """

    def __init__(self, folder: Path, *, cache_bytes: int = DEFAULT_CACHE_BYTES):
        self.folder = folder
        self._table, self.header = _read_index(folder / INDEX_FILE)
        self.record_tokens: int = self.header["record_tokens"]
        self.dtype = np.dtype(self.header["dtype"])
        self.fingerprint: str = self.header["tokenizer"]
        self.index = {name: self._source_index(name, entry) for name, entry in self.header["sources"].items()}
        self._absent: dict[Path, dict[str, Any]] = {}  # shards that are in the store still
        self._shards = {name: self._checked_shards(entry["shards"]) for name, entry in self.header["sources"].items()}
        self._last = {name: np.cumsum([records for _, records in shards]) for name, shards in self._shards.items()}
        self._open: OrderedDict[Path, ArrayRecordReader] = OrderedDict()
        self._cache: OrderedDict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._cache_bytes, self._cached = cache_bytes, 0
        self._lock = threading.Lock()

    def doc_ids(self, source: str, documents: np.ndarray) -> list[str]:
        """The ids of documents given by their place in the source's stream order."""
        rows = pa.array(np.asarray(documents, np.int64) + self.index[source].first)
        return self._table.column("doc_id").take(rows).to_pylist()

    def ids(self, source: str, start: int, stop: int) -> np.ndarray:
        """The ids [start, stop) of a source's stream; read-only, as on disk (uint16 or uint32)."""
        return self._gather(source, start, stop, 0)

    def loss_weights(self, source: str, start: int, stop: int) -> np.ndarray:
        """The loss weights [start, stop) of a weighted source's stream: float32."""
        return self._gather(source, start, stop, 1)

    def document_ids(self, source: str, document: int) -> np.ndarray:
        """All ids of one document, BOS and EOS included."""
        index = self.index[source]
        begin = int(index.begins[document])
        return self.ids(source, begin, begin + int(index.num_tokens[document]))

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer other than the one that the dataset was built with (ValueError, one line)."""
        if tokenizer.fingerprint != self.fingerprint:
            raise ValueError(
                f"{self.folder}: built with tokenizer {self.fingerprint[:12]}, given {tokenizer.fingerprint[:12]} "
                f"with {tokenizer.vocab_size} ids; build the dataset again with it or give the dataset's own tokenizer"
            )

    def _gather(self, source: str, start: int, stop: int, part: int) -> np.ndarray:
        size = self.record_tokens
        record, offset = divmod(start, size)
        if offset + stop - start <= size:
            return self._record(source, record)[part][offset : offset + stop - start]
        pieces = []
        while start < stop:
            record, offset = divmod(start, size)
            pieces.append(self._record(source, record)[part][offset : offset + stop - start])
            start += len(pieces[-1])
        return np.concatenate(pieces)

    def _record(self, source: str, record: int) -> tuple[np.ndarray, np.ndarray]:
        key = (source, record)
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
                return found
            found = self._read(source, record)
            self._cache[key] = found
            self._cached += found[0].nbytes + found[1].nbytes
            while self._cached > self._cache_bytes and len(self._cache) > 1:
                _, (ids, weights) = self._cache.popitem(last=False)
                self._cached -= ids.nbytes + weights.nbytes
            return found

    def _read(self, source: str, record: int) -> tuple[np.ndarray, np.ndarray]:
        number = int(np.searchsorted(self._last[source], record, "right"))
        path, records = self._shards[source][number]
        place = record - int(self._last[source][number]) + records
        self._bring(path)
        try:
            content = self._shard(path).read([place])[0]
        except Exception as error:  # array_record raises kinds of its own
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{path}: record {place} cannot be read ({reason}); build the dataset again") from error
        index = self.index[source]
        count = min(self.record_tokens, index.tokens - record * self.record_tokens)
        expected = count * (self.dtype.itemsize + 4 * index.weighted)
        if len(content) != expected:
            raise ValueError(
                f"{path}: record {place} has {len(content)} bytes, expected {expected}; build the dataset again"
            )
        ids = np.frombuffer(content, self.dtype, count)
        weights = np.frombuffer(content, "<f4", offset=ids.nbytes) if index.weighted else np.empty(0, "<f4")
        return ids, weights

    def _source_index(self, name: str, entry: dict[str, Any]) -> SourceIndex:
        first, last = entry["first"], entry["last"]
        part = self._table.slice(first, last - first)
        num_tokens, num_bytes = (part.column(column).to_numpy() for column in ("num_tokens", "num_bytes"))
        begins = np.cumsum(num_tokens) - num_tokens
        if int(num_tokens.sum()) != entry["tokens"] or sum(s["records"] for s in entry["shards"]) != -(
            -entry["tokens"] // self.record_tokens
        ):
            raise ValueError(
                f"{self.folder / INDEX_FILE}: the counts of source {name} disagree; build the dataset again"
            )
        return SourceIndex(
            name=name,
            first=first,
            num_tokens=num_tokens,
            num_bytes=num_bytes,
            begins=begins,
            weighted=entry["weighted"],
            whole=entry.get("whole", False),
            second=part.column("second").to_numpy() if entry.get("paired") else None,
        )

    def _bring(self, path: Path) -> None:
        """Fetch a shard that is in the store still, under the lock."""
        if path not in self._absent:
            return
        dataset = self.folder.parent.parent
        at_hand(dataset, path.relative_to(dataset).as_posix())
        try:
            _check_shard(path, self._absent[path])
        except ValueError:
            path.unlink()  # so that it is fetched again when the store's file was mended
            raise
        del self._absent[path]

    def _shard(self, path: Path) -> ArrayRecordReader:
        """An open shard, under the lock; the one that was not used for longest is closed for it."""
        reader = self._open.pop(path, None) or ArrayRecordReader(str(path))
        self._open[path] = reader
        if len(self._open) > SHARDS_OPEN:
            self._open.popitem(last=False)  # nothing else holds it, so its file is closed
        return reader

    def _checked_shards(self, shards: list[dict[str, Any]]) -> list[tuple[Path, int]]:
        """(path, records) of a source's shards, each of which is whole, or in the store still."""
        checked = []
        for shard in shards:
            path = self.folder / shard["file"]
            if not path.is_file() and (self.folder.parent.parent / STORE_NOTE).is_file():
                self._absent[path] = shard
            else:
                _check_shard(path, shard)
            checked.append((path, shard["records"]))
        return checked


def _check_shard(path: Path, shard: dict[str, Any]) -> None:
    """ValueError, one line, for a shard that is missing or has another size or number of records than it should."""
    if not path.is_file():
        raise ValueError(f"{path}: shard is missing; build the dataset again")
    size, records = path.stat().st_size, 0
    if size == shard["bytes"]:
        records = ArrayRecordReader(str(path)).num_records()  # a truncated file opens as 0 records
    if records != shard["records"]:
        raise ValueError(
            f"{path}: truncated or changed: {size} bytes, expected {shard['bytes']} with {shard['records']} "
            "records; build the dataset again"
        )


def open_tokens(
    dataset: Path, split: str, *, tokenizer: Tokenizer | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES
) -> TokenReader:
    """Open DATASET/tokens/SPLIT; its own tokenizer folder, and `tokenizer` when given, must be the one of the ids.

    Raises ValueError in one line for a missing or damaged dataset or another tokenizer.
    """
    folder = Path(dataset) / "tokens" / split
    if not folder.is_dir():
        raise ValueError(f"{folder}: no token shards here; build the dataset first (python -m data.main --config ...)")
    reader = TokenReader(folder, cache_bytes=cache_bytes)
    own = Path(dataset) / "tokenizer"
    if own.is_dir():
        reader.check_tokenizer(load_tokenizer(own))
    if tokenizer is not None:
        reader.check_tokenizer(tokenizer)
    return reader


def _read_index(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        header = json.loads(table.schema.metadata[b"sluice"])
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no token index; build the dataset again") from error
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: unreadable or truncated token index ({reason}); build the dataset again") from error
    if header.get("format") != 1 or header.get("documents") != table.num_rows:
        raise ValueError(f"{path}: not a whole token index of format 1; build the dataset again")
    return table, header

"""Safetensors files as memory-mapped numpy views, so that a device can read only its own slice.

The format is eight bytes of header length, a JSON header and raw little-endian arrays
(https://huggingface.co/docs/safetensors). Reading is a map of the file and a view of it: nothing is copied until
somebody slices. Writing streams one tensor at a time, so a model never needs to be whole in host memory.
"""

import json
import mmap
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
MAX_HEADER_BYTES = 100_000_000  # bytes; the reference implementation refuses longer headers too
MAX_SHARD_BYTES = 5_000_000_000  # bytes a file; what `save_pretrained` of transformers splits at, near enough
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors of one checkpoint, whatever file they lie in."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor with its shape; reads no values."""
        ...

    def dtype(self, name: str) -> np.dtype:
        """The dtype `view` will have."""
        ...

    def view(self, name: str) -> np.ndarray:
        """The tensor; a map of the file where the format allows it, so slice before copying."""
        ...

    def release(self, name: str) -> None:
        """Let go of the tensor's mapped pages, which count as this process's memory once they were read."""
        ...


def release_pages(mapped: mmap.mmap, start: int, length: int) -> None:
    """Let go of the pages of a read-only map of a file; a later read brings them back. Does nothing where it cannot."""
    if hasattr(mmap, "MADV_DONTNEED") and length:
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, start + length - first)


class SafetensorsFolder:
    """All tensors of a folder: one `model.safetensors` or the shards that its index names."""

    def __init__(self, folder: Path):
        self._views: dict[str, np.ndarray] = {}
        self._places: dict[str, tuple[mmap.mmap, int]] = {}  # of every tensor: its file's map, its first byte there
        for path, names in _files_of(folder).items():
            mapped, found, starts = map_safetensors(path)
            missing = sorted(names - found.keys()) if names else []
            if missing:
                raise ValueError(
                    f"{path.name} lacks tensors that {INDEX_NAME} promises: {_some(missing)}; copy it again"
                )
            self._views.update(found)
            self._places.update({name: (mapped, start) for name, start in starts.items()})

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor with its shape."""
        return {name: view.shape for name, view in self._views.items()}

    def dtype(self, name: str) -> np.dtype:
        """The dtype of one tensor: files may mix them."""
        return self._views[name].dtype

    def view(self, name: str) -> np.ndarray:
        """A read-only map of the tensor's bytes."""
        return self._views[name]

    def release(self, name: str) -> None:
        """Let go of the tensor's pages."""
        release_pages(*self._places[name], self._views[name].nbytes)


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _files_of(folder: Path) -> dict[Path, set[str]]:
    """Safetensors files of a folder with the tensor names that the index promises in each (empty: no index)."""
    index = folder / INDEX_NAME
    if index.exists():
        files: dict[Path, set[str]] = {}
        for name, file in _weight_map(index).items():
            if Path(file).name != file:
                raise ValueError(f"{index} points outside its folder ({file!r}); refused")
            files.setdefault(folder / file, set()).add(name)
        absent = [path.name for path in files if not path.exists()]
        if absent:
            raise ValueError(f"{folder} lacks {_some(sorted(absent))}, which {INDEX_NAME} names; download them again")
        return files
    if (folder / SINGLE_NAME).exists():
        return {folder / SINGLE_NAME: set()}
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder} holds only pickled weights ({_some(pickles)}), which can run code and are never loaded; "
            "convert them to safetensors where you trust them"
        )
    raise ValueError(f"{folder} holds no {SINGLE_NAME} and no {INDEX_NAME}: expected a Hugging Face model folder")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to file name, of an index; ValueError where it is none."""
    try:
        found = json.loads(index.read_text())["weight_map"]
        if all(isinstance(file, str) for file in found.values()):
            return found
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f'{index} is not an index: expected {{"weight_map": {{TENSOR: FILE}}}}; download it again')


def open_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Memory-mapped views of every tensor of one file; ValueError where the file is cut short or malformed."""
    return map_safetensors(path)[1]


def map_safetensors(path: Path) -> tuple[mmap.mmap, dict[str, np.ndarray], dict[str, int]]:
    """(the map of one file, a view of each tensor, the byte of the map at which each begins); errors as above."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"{path} is not a whole safetensors file: its header would not fit ({size} bytes in all)")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} has a safetensors header that is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path} has a safetensors header that is a JSON {type(header).__name__}: expected an object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if not _is_entry(entry):
            raise ValueError(
                f"{path} has a safetensors header whose entry {name!r} "
                "lacks dtype, shape or data_offsets; copy it again"
            )
    base = 8 + length
    expected = base + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < expected:
        raise ValueError(f"{path} is truncated: {size:,} bytes of {expected:,}; download it again")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    views = {name: _view(mapped, base, name, entry, path) for name, entry in header.items()}
    return mapped, views, {name: base + entry["data_offsets"][0] for name, entry in header.items()}


def _is_entry(entry: object) -> bool:
    """Whether a header's entry says of a tensor what it must: {"dtype", "shape", "data_offsets": [begin, end]}."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(isinstance(number, int) and number >= 0 for number in (*shape, *offsets))


def _view(mapped: mmap.mmap, base: int, name: str, entry: dict, path: Path) -> np.ndarray:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"{path}: tensor {name} has dtype {entry['dtype']}; expected one of {', '.join(DTYPES)}")
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if begin < 0 or end - begin != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise ValueError(f"{path}: tensor {name} of shape {shape} does not fit its {end - begin} bytes; copy it again")
    return np.frombuffer(mapped, np.uint8, count=end - begin, offset=base + begin).view(dtype).reshape(shape)


# ------------------------------------------------------------------------------------------------------------ writing

Entry = tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]  # name, shape, dtype, how to get the values


def write_safetensors(folder: Path, entries: Iterable[Entry], max_shard_bytes: int = MAX_SHARD_BYTES) -> list[Path]:
    """Write tensors as one file, or as shards of at most `max_shard_bytes` with an index; values are made one by one.

    Returns the paths. Every file is written under a temporary name and renamed when whole.
    """
    shards = _plan(list(entries), max_shard_bytes)
    total = sum(_bytes(entry) for shard in shards for entry in shard)
    paths, weight_map = [], {}
    for number, shard in enumerate(shards, start=1):
        name = SINGLE_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard)
        paths.append(folder / name)
        weight_map.update({entry[0]: name for entry in shard})
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
    return paths


def _bytes(entry: Entry) -> int:
    return int(np.prod(entry[1], dtype=np.int64)) * entry[2].itemsize


def _plan(entries: list[Entry], max_shard_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + _bytes(entry) > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += _bytes(entry)
    return shards


def _write_file(path: Path, entries: list[Entry]) -> None:
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for this key
    offset = 0
    for entry in entries:
        name, shape, dtype, _ = entry
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [offset, offset + _bytes(entry)]}
        offset += _bytes(entry)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # arrays start aligned, so that maps of them do too
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape, dtype, values in entries:
            array = np.ascontiguousarray(values(), dtype=dtype)
            if array.shape != tuple(shape):
                raise ValueError(f"tensor {name} has shape {array.shape}, expected {tuple(shape)}")
            file.write(array.reshape(-1).view(np.uint8).data)
    temporary.replace(path)

"""GGUF files: metadata, and tensors as maps (F32, F16, BF16) or dequantised by the `gguf` package (Q4_1, Q8_0, ...).

The header is parsed here because the package's own reader takes seconds over a vocabulary of 49,152 strings; the layout
is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Dequantisation is the package's work (it is optional).
"""

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from models.checkpoints.tensors import release_pages

MAGIC = b"GGUF"
VERSIONS = (2, 3)
PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: np.dtype(ml_dtypes.bfloat16)}  # ggml type numbers
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_ITEMS = 50_000_000  # entries of one metadata array; the largest vocabularies have well under a million
DEFAULT_ALIGNMENT = 32  # bytes, where general.alignment is absent


class _Header:
    """A cursor over the mapped file; every read is checked against the end of the file."""

    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.at = data, path, 0

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise ValueError(f"{self.path} is truncated inside its header ({len(self.data):,} bytes)")
        start, self.at = self.at, self.at + size
        return self.data[start : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"{self.path} has a metadata value of unknown type {kind}: not a GGUF v2 or v3 file")
        inner, count = self.number("I"), self.number("Q")
        if count > MAX_ITEMS:
            raise ValueError(f"{self.path} declares a metadata array of {count:,} items; refused")
        if inner in SCALARS:
            code = SCALARS[inner]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code))))
        return [self.value(inner) for _ in range(count)]


class GgufFile:
    """One GGUF file: `metadata` (str to value) and a `TensorSource` over its tensors.

    Shapes are numpy's (the outermost first), the reverse of ggml's.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        head = _Header(self._map, path)
        if head.take(4) != MAGIC:
            raise ValueError(f"{path} is not a GGUF file: it does not start with {MAGIC!r}")
        version = head.number("I")
        if version not in VERSIONS:
            raise ValueError(f"{path} is GGUF version {version}; expected one of {VERSIONS}")
        num_tensors, num_values = head.number("Q"), head.number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = head.string()
            self.metadata[key] = head.value(head.number("I"))
        self._entries: dict[str, tuple[tuple[int, ...], int, int]] = {}  # name: (shape, ggml type, offset)
        for _ in range(num_tensors):
            name = head.string()
            dims = [head.number("Q") for _ in range(head.number("I"))]
            self._entries[name] = (tuple(reversed(dims)), head.number("I"), head.number("Q"))
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        self._base = -(-head.at // alignment) * alignment
        for name, (shape, kind, offset) in self._entries.items():
            if self._base + offset + self._num_bytes(shape, kind) > len(self._map):
                raise ValueError(f"{path} is truncated: tensor {name} lies past its {len(self._map):,} bytes")

    @property
    def architecture(self) -> str:
        """general.architecture, such as "llama"."""
        return self.metadata.get("general.architecture", "")

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture's own section: `get("block_count")` is metadata["llama.block_count"]."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def require(self, key: str) -> Any:
        """As `get`, but ValueError where the key is absent."""
        if (value := self.get(key)) is None:
            raise ValueError(f"{self.path} lacks {self.architecture}.{key} in its metadata; it cannot be loaded")
        return value

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor with its shape, outermost dim first."""
        return {name: shape for name, (shape, _, _) in self._entries.items()}

    def dtype(self, name: str) -> np.dtype:
        """F32, F16 and BF16 keep theirs; everything quantised becomes float32."""
        return PLAIN.get(self._entries[name][1], np.dtype(np.float32))

    def view(self, name: str) -> np.ndarray:
        """A map of a plain tensor, or the dequantised values of a quantised one."""
        shape, kind, offset = self._entries[name]
        start = self._base + offset
        raw = np.frombuffer(self._map, np.uint8, count=self._num_bytes(shape, kind), offset=start)
        if kind in PLAIN:
            return raw.view(PLAIN[kind]).reshape(shape)
        quants = _package()
        try:
            values = quants.dequantize(raw.reshape(*shape[:-1], -1), quants.GGMLQuantizationType(kind))
        except NotImplementedError:
            raise ValueError(f"{self.path}: tensor {name} has a quantisation that gguf cannot dequantise") from None
        return values.reshape(shape)

    def release(self, name: str) -> None:
        """Let go of the tensor's pages."""
        shape, kind, offset = self._entries[name]
        release_pages(self._map, self._base + offset, self._num_bytes(shape, kind))

    def _num_bytes(self, shape: tuple[int, ...], kind: int) -> int:
        size = int(np.prod(shape, dtype=np.int64))
        if kind in PLAIN:
            return size * PLAIN[kind].itemsize
        quants = _package()
        known = {int(key): value for key, value in quants.GGML_QUANT_SIZES.items()}
        if kind not in known:
            raise ValueError(f"{self.path} has a tensor of unknown ggml type {kind}")
        block, block_bytes = known[kind]
        return size // block * block_bytes


def _package() -> Any:
    try:
        import gguf.quants
    except ImportError:
        raise ValueError("quantised GGUF files need the gguf package: pip install gguf") from None
    return gguf.quants

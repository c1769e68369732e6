"""Folders of plain text: one document a file.

TextFolder(name="notes", paths=("notes/",), licence="CC0-1.0")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources.base import FileSource
from data.sources.charset import latin_encoding

BINARY_SAMPLE = 8192  # bytes looked at for NULs
BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def read_whole(stream: Any, limit: int) -> tuple[bytes, bool]:
    """(bytes, whether that is all): at most `limit` bytes of a stream."""
    data = stream.read(limit + 1)
    return data[:limit], len(data) <= limit


def decode_text(data: bytes) -> tuple[str, str]:
    """(text, encoding): byte order mark, then UTF-8, then detection. ValueError for what is not text at all."""
    for mark, encoding in BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise ValueError(f"marked as {encoding}, which it is not") from error
    if b"\x00" in data[:BINARY_SAMPLE]:
        raise ValueError("NUL bytes: not text")
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        pass
    if (western := latin_encoding(data[: 1 << 16])) is not None:
        return data.decode(western, "replace"), western
    from charset_normalizer import from_bytes

    best = from_bytes(data[: 1 << 16], steps=5, threshold=0.3).best()
    if best is None:
        raise ValueError("no known encoding fits")
    return data.decode(best.encoding, "replace"), best.encoding


@dataclass(frozen=True, kw_only=True)
class TextFolder(FileSource):
    """Plain text files; the encoding is found out and named in the meta."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".md", ".rst", ".text")
    version: ClassVar[int] = 3
    files_per_shard: ClassVar[int] = 64
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.text_files",
        "data.sources.charset",
    )
    libraries: ClassVar[tuple[str, ...]] = ("charset-normalizer",)

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """The file as one document."""
        data = self.read_file(stream)
        try:
            text, encoding = decode_text(data)
        except ValueError as error:
            yield self.drop(shard, None, "bad_encoding", value=str(error))
            return
        yield self.document(shard, None, text.removeprefix("\ufeff"), encoding=encoding, group=shard["key"])

"""What reading a column of a Parquet row group would cost, told by its page headers before anything is decompressed.

A page is decompressed whole, whatever the size of a batch, so one huge value or a compression bomb would take the
memory. Page headers are Thrift structures in the compact protocol (parquet.thrift, thrift-compact-protocol.md).
"""

from __future__ import annotations

from typing import Any

HEADER_BYTES = 64 << 10  # read at once; statistics make headers of some hundred bytes
I32_SIZES = {2: "uncompressed", 3: "compressed"}  # fields of PageHeader
STOP, TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
MAX_DEPTH = 8


def largest_page(stream: Any, column: Any) -> int:
    """Decompressed bytes of the largest page of a column chunk (`pyarrow` metadata). ValueError where it is damaged."""
    position, largest = column.data_page_offset, 0
    if column.has_dictionary_page and column.dictionary_page_offset:
        position = min(position, column.dictionary_page_offset)
    end = position + column.total_compressed_size
    while position < end:
        stream.seek(position)
        sizes, length = page_header(stream.read(HEADER_BYTES))
        largest = max(largest, sizes["uncompressed"])
        position += length + sizes["compressed"]
    return largest


def page_header(data: bytes) -> tuple[dict[str, int], int]:
    """({"uncompressed", "compressed"} bytes, length of the header). ValueError where the bytes are none."""
    sizes: dict[str, int] = {}
    try:
        length = _struct(data, 0, 0, sizes)
    except IndexError as error:
        raise ValueError("a page header ends early") from error
    if len(sizes) < 2 or min(sizes.values()) < 0:
        raise ValueError("a page header without sizes")
    return sizes, length


def _struct(data: bytes, at: int, depth: int, sizes: dict[str, int] | None = None) -> int:
    """Past the structure at `at`; fields named in I32_SIZES go to `sizes`."""
    field = 0
    while (byte := data[at]) != STOP:
        at += 1
        if delta := byte >> 4:
            field += delta
        else:
            number, at = _varint(data, at)
            field = number >> 1 ^ -(number & 1)
        kind = byte & 15
        if sizes is not None and field in I32_SIZES:
            number, at = _varint(data, at)
            sizes[I32_SIZES[field]] = number >> 1 ^ -(number & 1)
        else:
            at = _skip(data, at, kind, depth)
    return at + 1


def _skip(data: bytes, at: int, kind: int, depth: int) -> int:
    if depth > MAX_DEPTH:
        raise ValueError("a page header nests too deep")
    if kind in (TRUE, FALSE):
        return at
    if kind == BYTE:
        return at + 1
    if kind == DOUBLE:
        return at + 8
    if kind == STRUCT:
        return _struct(data, at, depth + 1)
    number, at = _varint(data, at)
    if kind == BINARY:
        return at + number
    if kind in (LIST, SET, MAP):
        raise ValueError("a page header with a list, which the format does not have")
    return at  # an integer


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 128:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if shift > 63:
            raise ValueError("a number without an end in a page header")
    return value | data[at] << shift, at + 1

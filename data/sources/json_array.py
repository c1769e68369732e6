"""One huge JSON array, read one value after the other: what accounts export is a single line of any length.

Written here because `ijson` ends at the first byte that is not UTF-8, where one post is to be dropped and the rest
read on, and sets no limit to a value.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from data.sources.limits import TooLargeError

CHUNK = 1 << 20  # bytes
SPACE = re.compile(r"[ \t\r\n]*")
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how Python stands for a byte that does not decode
CLOSED = re.compile(r"[ \t\r\n;]*\Z")  # what may follow the value: an account's file is a statement of JavaScript


class _Window:
    """The part of a stream's text that is being read, from `at` on."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._parse = json.JSONDecoder().raw_decode
        self.text, self.at, self.ended = "", 0, False

    def grow(self) -> bool:
        """Read on, at least as much again as is there already; False at the end of the stream."""
        parts, size, have = [], -1, len(self.text) - self.at
        while size < have and not self.ended:
            data = self._stream.read1(CHUNK)  # read() would lose what it has when the file ends early
            self.ended = not data
            parts.append(self._decode(data, self.ended))
            size = max(size, 0) + len(data)
        self.text, self.at = "".join([self.text[self.at :], *parts]), 0
        return size > 0

    def mark(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches everywhere
            if self.at < len(self.text) or not self.grow():
                return self.text[self.at : self.at + 1]

    def value(self) -> tuple[Any, str]:
        """(the value that begins here, ""), or (None, why not) where it is whole but not UTF-8."""
        self.mark()
        while True:
            try:
                value, end = self._parse(self.text, self.at)
            except json.JSONDecodeError:
                end = -1
            if end >= 0 and (end < len(self.text) or self.ended):  # a number may go on behind the window
                part, self.at = self.text[self.at : end], end
                if len(part) > self._limit:
                    raise TooLargeError
                return (value, "") if part.isascii() or not NOT_UTF8.search(part) else (None, "not UTF-8")
            if end < 0 and len(self.text) - self.at > self._limit:
                raise TooLargeError
            if not self.grow() and end < 0:
                raise ValueError("no JSON value, or one that does not end")


def array_items(stream: Any, limit: int) -> Iterator[tuple[Any, str]]:
    """(value, "") of each value of an array, (None, why) of one that is not UTF-8; a lone value is an array of one.

    limit: characters of one value. TooLargeError beyond it, ValueError or RecursionError where the text is no JSON;
    either ends the array, after the values in front of it.
    """
    window = _Window(stream, limit)
    if window.mark() != "[":
        yield window.value()
    else:
        window.at += 1
        closed = window.mark() == "]"
        while not closed:
            yield window.value()
            if (mark := window.mark()) not in (",", "]") or not mark:
                raise ValueError(f"{mark!r} behind a value of an array: expected a comma or its end")
            closed = mark == "]"
            window.at += not closed
        window.at += 1
    while not window.ended:
        if not CLOSED.match(window.text, window.at):
            break
        window.at = len(window.text)
        window.grow()
    if not CLOSED.match(window.text, window.at):
        raise ValueError("more text behind the end of the array")

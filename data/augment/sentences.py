"""Paragraphs and sentences with everything between them, so that a text can be taken apart and put together again.

Sentences are found by `sentencex` (Wikimedia's splitter; about 300 languages, 30,000 documents of 1 kB a second).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

VERSION = 1
_BREAK = re.compile(r"(\n(?:[ \t]*\n)+)")  # what indents the next line is left: it tells code from prose
_TURN = re.compile(r"[-–—]\s*\w|[\"“«‹„]|(?:[A-Z][\w.' -]{0,40}|\S{1,30}):\s")  # a dash, a quote, "Name: "
_LIST = re.compile(r"[-*•+]\s|\d+[.)]\s|[a-z][.)]\s|[>|#]|={2,}|-{3,}|\.\.\s|>>>|```")
_CODE = ("()", "->", "==", "!=", "<=", ">=", "+=", "-=", "*=", "/=", ":=")  # what prose does not hold


@dataclass(frozen=True, slots=True)
class Piece:
    """A paragraph or a sentence, and the white space that follows it."""

    text: str
    space: str


def paragraphs(text: str) -> list[Piece]:
    """Paragraphs, apart at blank lines; joined they are the text."""
    parts = _BREAK.split(text)
    return [Piece(parts[i], parts[i + 1] if i + 1 < len(parts) else "") for i in range(0, len(parts), 2)]


def sentences(text: str, language: str) -> list[Piece]:
    """Sentences of one paragraph; joined they are the paragraph."""
    from sentencex import segment

    pieces: list[Piece] = []
    for part in segment(language if language.isalpha() else "en", text):
        body = part.strip()
        if not body:
            if pieces:
                pieces[-1] = Piece(pieces[-1].text, pieces[-1].space + part)
            else:
                pieces.append(Piece("", part))
            continue
        start = part.index(body)
        if start:  # white space in front belongs to the sentence before
            if pieces:
                pieces[-1] = Piece(pieces[-1].text, pieces[-1].space + part[:start])
            else:
                pieces.append(Piece("", part[:start]))
        pieces.append(Piece(body, part[start + len(body) :]))
    return pieces


def is_dialogue(paragraph: str) -> bool:
    """Whether somebody speaks at the start of a line: such turns have an order that carries their meaning."""
    return any(_TURN.match(line.lstrip()) for line in paragraph.split("\n"))


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is running text: no list, table, heading, quotation mark-up or code."""
    if not paragraph or paragraph.isspace() or any(sign in paragraph for sign in _CODE):
        return False
    for line in paragraph.split("\n"):
        if line.startswith(("    ", "\t")) or _LIST.match(line.lstrip()) or line.rstrip().endswith(("{", "}", ";")):
            return False
    return True


def joined(pieces: list[Piece]) -> str:
    """The text of the pieces."""
    return "".join(piece.text + piece.space for piece in pieces)

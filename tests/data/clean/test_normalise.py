"""Normalisation makes equal what looks equal, loses nothing else, and is done when it is done."""

from __future__ import annotations

import pytest

from data.clean.basic import Normalise
from data.document import Document
from data.features import Features
from tests.data.clean.samples import document


def normalised(text: str, **settings) -> Document:
    result = Normalise(**settings)(document(text), Features(text))
    assert isinstance(result, Document)
    return result


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("cafe\u0301", "café"),
        ("zero\u200bwidth soft\u00adhyphen \ufeffmark", "zerowidth softhyphen mark"),
        ("override \u202egnp.exe\u202c", "override gnp.exe"),
        ("a\u00a0b\u2009c", "a b c"),
        ("bell\x07 and\x00 null", "bell and null"),
        ("too    many \t spaces  \n\n\n\n\nlines  ", "too many spaces\n\nlines"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("family 👨\u200d👩\u200d👧", "family 👨\u200d👩\u200d👧"),
        ("lone \ud800 and pair \ud83d\ude00", "lone \ufffd and pair 😀"),
        ("שלום\u200f (abc)", "שלום\u200f (abc)"),
    ],
)
def test_prose(given: str, wanted: str) -> None:
    result = normalised(given)
    assert result.text == wanted
    assert normalised(result.text).text == wanted


def test_changes_are_counted_and_an_unchanged_text_is_the_same_document() -> None:
    assert normalised("a\r\nb\u200b").meta["changed"] == {"normalise": {"invisible": 1, "line_ends": 1}}
    given = document("Nothing to do.\n\nHere.")
    assert Normalise()(given, Features(given.text)) is given


def test_code_keeps_its_indentation_and_inner_spaces() -> None:
    text = "def f(a,  b):\n\tif a:   \n        return  b\n\n\n\n\n\n\n\nx = 1\r\n"
    assert normalised(text, whitespace="code").text == "def f(a,  b):\n\tif a:\n        return  b\n\n\n\nx = 1"


def test_keep_touches_no_whitespace() -> None:
    assert normalised("  a \n\n\n\n b\u200b ", whitespace="keep").text == "  a \n\n\n\n b "


def test_encoding_is_repaired_only_when_asked_for() -> None:
    assert normalised("une sÃ©ance", repair_encoding=True).text == "une séance"
    assert normalised("une sÃ©ance").text == "une sÃ©ance"

"""Personal data is found by kind, replaced as asked for, and recorded by place, never by value."""

from __future__ import annotations

import json

import pytest

from data.clean.pii import KINDS, PersonalData, find_personal_data, redact
from data.document import Document
from data.features import Features
from tests.bench.pii import generated, labelled, score
from tests.data.clean.samples import PROSE, document

FOUND = (
    ("Mail bob.o'neil@example.co.uk, please.", "email", "bob.o'neil@example.co.uk"),
    ("(bob@x.com), ok", "email", "bob@x.com"),
    ("at the end bob@x.com", "email", "bob@x.com"),
    ("ping 8.8.8.8.", "ip", "8.8.8.8"),
    ("at 2001:db8:85a3::8a2e:370:7334 now", "ip", "2001:db8:85a3::8a2e:370:7334"),
    ("card 4111 1111 1111 1111 was", "card", "4111 1111 1111 1111"),
    ("to GB82 WEST 1234 5698 7654 32 today", "iban", "GB82 WEST 1234 5698 7654 32"),
    ("to DE89370400440532013000.", "iban", "DE89370400440532013000"),
    ("+44 20 7946 0958 is mine", "phone", "+44 20 7946 0958"),
    ("reach us at (212) 555-0187 today", "phone", "(212) 555-0187"),
    ("Phone: 358 0594", "phone", "358 0594"),
    ("my SSN is 536-90-4399 since", "national_id", "536-90-4399"),
    ("codice RSSMRA85T10A562S fiscale", "national_id", "RSSMRA85T10A562S"),
    ("git clone https://me:secret@host.org/x", "url_credentials", "me:secret"),
    ("key AKIAIOSFODNN7EXAMPLE in use", "api_key", "AKIAIOSFODNN7EXAMPLE"),
    ('password = "k8Jq2Lm9Zx4Vb7Nc"', "api_key", "k8Jq2Lm9Zx4Vb7Nc"),
    (
        "a -----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- z",
        "private_key",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
    ),
)
NOT_FOUND = (
    "order 1234567890123 was sent",
    "version 10.0.3.21 of it, and section 1.2.3.4",
    "on 2015-12-22 10:30:00 and 22/12/2015",
    "commit 3f786850e387550fdab836ed7e6dc881de23001b",
    "std::vector and a::b and 12:30:45",
    "logo@2x.png @decorator.setter",
    "card 4111 1111 1111 1112 has a wrong check digit",
    "GB83 WEST 1234 5698 7654 32 has a wrong check sum",
    "ISBN 978-3-16-148410-0",
    "from 1,234,567.89 to 2,345,678.90",
    "255.255.255.0 is a mask",
    "sk-learn-contrib-package-name-long",
)


@pytest.mark.parametrize(("text", "kind", "value"), FOUND)
def test_found(text: str, kind: str, value: str) -> None:
    assert [(s.kind, text[s.start : s.end]) for s in find_personal_data(text)] == [(kind, value)]


@pytest.mark.parametrize("text", NOT_FOUND)
def test_not_found(text: str) -> None:
    assert find_personal_data(text) == []


def test_placeholders_and_recorded_places() -> None:
    given = document("Mail a@x.org or call +44 20 7946 0958, a@x.org again.")
    result = PersonalData()(given, Features(given.text))
    assert isinstance(result, Document)
    assert result.text == "Mail [EMAIL] or call [PHONE], [EMAIL] again."
    assert [result.text[start:end] for _, start, end in result.meta["pii"]] == ["[EMAIL]", "[PHONE]", "[EMAIL]"]
    assert "x.org" not in json.dumps(result.meta)
    assert PersonalData()(result, Features(result.text)) is result


def test_pseudonyms_are_the_same_for_the_same_value_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    step = PersonalData(action="pseudonym", actions=(("phone", "keep"),))
    text = "A@x.org, a@x.org, b@x.org, 8.8.8.8, +44 20 7946 0958"
    monkeypatch.setenv("SLUICE_PII_KEY", "one")
    first = step(document(text), Features(text))
    assert isinstance(first, Document)
    a, same, b, ip, phone = first.text.split(", ")
    assert a == same != b
    assert a.endswith("@example.com")
    assert ip.startswith(("192.0.2.", "198.51.100."))
    assert phone == "+44 20 7946 0958"
    monkeypatch.setenv("SLUICE_PII_KEY", "two")
    second = step(document(text), Features(text))
    assert isinstance(second, Document)
    assert second.text != first.text
    monkeypatch.delenv("SLUICE_PII_KEY")
    with pytest.raises(ValueError, match="SLUICE_PII_KEY"):
        step(document(text), Features(text))


def test_names_are_found_only_when_asked_for() -> None:
    text = "Mrs. Ada Lovelace met Babbage."
    assert find_personal_data(text) == []
    assert [text[s.start : s.end] for s in find_personal_data(text, KINDS)] == ["Ada Lovelace"]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no kind 'mail'"):
        PersonalData(kinds=("mail",))


def test_redacted_text_holds_nothing_any_more() -> None:
    text = " ".join(text for text, _, _ in FOUND)
    assert find_personal_data(redact(text)) == []
    assert redact(PROSE) is PROSE


def test_bars_on_generated_values() -> None:
    texts = generated(150, [f"{sentence}." for sentence in PROSE.rstrip(".").split(". ")])
    found = [[(s.kind, s.start, s.end) for s in find_personal_data(text)] for text, _ in texts]
    for kind, (precision, recall) in score((gold for _, gold in texts), found).items():
        bar = 0.9 if kind == "phone" else 0.98
        assert precision >= bar, kind
        assert recall >= bar, kind


@pytest.mark.real_data
def test_nothing_is_missed_in_the_labelled_texts(real_data) -> None:
    rows = labelled(real_data / "pii" / "labelled-500.json")
    found = [[(s.kind, s.start, s.end) for s in find_personal_data(text)] for text, _ in rows]
    scores = score((gold for _, gold in rows), found)
    assert {kind: recall for kind, (_, recall) in scores.items() if kind != "phone"} == dict.fromkeys(
        ("email", "ip", "card", "iban"), 1.0
    )
    precision, recall = scores["phone"]
    assert 2 * precision * recall / (precision + recall) > 0.564  # Presidio 2's own recogniser on the same texts

"""Personal data that are numbers: payment cards, IBANs, phone numbers, national ids.

A string of digits says little by itself, so every kind asks for more: a checksum (cards, IBANs, national ids), a
numbering plan (phones, by `phonenumbers`), a way of grouping, or a word before it ("call", "IBAN", "SSN").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from typing import NamedTuple

import phonenumbers
from stdnum import iban as stdnum_iban
from stdnum import luhn

from data.clean.pii_text import Span

VERSION = 1
LIBRARIES = ("phonenumbers", "python-stdnum")

# Digits with the separators that people write, 7 to 23 of them; bounded, and never started inside a word or number.
_SEPARATED = r"(?:[ \u00a0]?[()\-/\u2011\u2013]{1,2}[ \u00a0]?|[ \u00a0]|\.)?"
_SEVEN_DIGITS = re.compile(rf"\d(?:{_SEPARATED}\d){{6}}")
_NUMBER = re.compile(rf"(?<![\w.,+/=#-])(?<!\d[ ])[+(]{{0,2}}\d(?:{_SEPARATED}\d){{6,22}}(?!(?!x\d)\w|[-/.,]\d)")
_EXTENSION = re.compile(r"\s{0,2}(?:x|ext\.?|extension)\s{0,2}\d{1,6}\b", re.IGNORECASE)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ \u00a0-]?[A-Z0-9]){11,30}")

# Issuers' first digits and lengths (ISO/IEC 7812): a checksum alone lets one in ten order numbers pass.
_CARD = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|65\d\d|64[4-9]\d|622\d)\d{12}(?:\d{3})?|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}"
    r"|(?:50|5[6-8]|6\d)\d{10,17}|0604\d{8}|(?:2131|1800)\d{11}"
)
_NO_CARD_BEFORE = re.compile(
    r"\b(?:order|invoice|tracking|ticket|reference|ref\.?|serial|part|parcel|isbn|imei|sku|id|doi|batch|case)"
    r"(?:\s?(?:no\.?|number|nr\.?|id))?[:#]?\s*(?:is\s+)?#?$",
    re.IGNORECASE,
)
_CARD_BEFORE = re.compile(
    r"(?:order|invoice|tracking|ticket|reference|ref|serial|part|parcel|isbn|imei|sku|id|doi|batch|case)\s?(?:no|number|nr|id)?"
    r"[.:#]?\s*(?:is\s+)?#?$",
    re.IGNORECASE,
)
_CARD_BEFORE = re.compile(r"\b(?:cards?|visa|mastercard|amex|maestro|jcb|discover)\b[^.!]{0,24}$", re.IGNORECASE)
_STREET_AFTER = re.compile(
    r"(?:\s[NSEW]\.?)?(?:\s[A-Z][\w.'-]*){1,3}\s(?:St|Street|Ave|Avenue|Rd|Road|Ln|Lane|Dr|Drive|Blvd|Way|Court|Ct)\b"
)
_PHONE_BEFORE = re.compile(
    r"\b(?:phones?|tel(?:ephone)?|mobile|cell|fax|call(?:ed|ing|s)?|dial|sms|text(?:ed)?|ring|whatsapp|reach(?:ed)?|contact"
    r"|answer(?:ing)?|messages?|voicemail|hotline|helpline|landline|handy|telefon|tél|téléphone)\b",
    re.IGNORECASE,
)
_NO_PHONE_BEFORE = re.compile(
    r"(?:\b(?:order|invoice|tracking|ticket|reference|ref|serial|part|isbn|issn|imei|sku|id|doi|version|ver|v|batch|case"
    r"|account|acct|card|number|no|nr|ssn|security|license|licence|vol|pp|page|pages|section|commit|build|release|dated?"
    r"|between|from|on|zip|code|lot|model|patent|article|arxiv|pmid|port|size|timestamp|epoch)\b[.:#]*\s*(?:is\s+)?#?|[#$€£¥§v])$",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"^(?:(?:19|20)\d\d[-/. ](?:0?[1-9]|1[0-2])[-/. ](?:0?[1-9]|[12]\d|3[01])(?:[ T]\d.*)?"
    r"|(?:0?[1-9]|[12]\d|3[01])[-/. ](?:0?[1-9]|[12]\d|3[01])[-/. ](?:19|20)\d\d(?: \d.*)?"
    r"|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{4}|\d{6})?|(?:19|20)\d\d ?[-–/] ?(?:19|20)\d\d)$"
)
_NANP = re.compile(r"^(?:\+?1[-. ]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-. /])[2-9]\d\d[-. ]\d{4}$")
_GROUPS = re.compile(r"\d+")
# Where numbers without a country code are looked up: large English-writing and European countries.
REGIONS = ("US", "GB", "FR", "DE", "IT", "ES", "NL", "BE", "CH", "AT", "SE", "DK", "PL", "PT", "IN", "AU", "BR", "MX")


def find_numbers(text: str, kinds: frozenset[str], regions: tuple[str, ...] = REGIONS) -> Iterator[Span]:
    """Cards, IBANs, national ids and phones among the numbers of a text, the surest kind for each."""
    if "iban" in kinds:
        yield from _find_ibans(text)
    if "national_id" in kinds:
        yield from _find_national_ids(text)
    if not kinds & {"card", "phone"} or not _SEVEN_DIGITS.search(text):
        return
    for match in _NUMBER.finditer(text):
        value = match.group()
        before = text[max(0, match.start() - 48) : match.start()]
        start, end = match.span()
        digits = "".join(_GROUPS.findall(value))
        if "card" in kinds and _is_card(value, digits, before):
            yield Span("card", start, end)
        elif "phone" in kinds and _is_phone(value, digits, before, regions) and not _STREET_AFTER.match(text, end):
            extension = _EXTENSION.match(text, end)
            yield Span("phone", start, extension.end() if extension else end)


def _is_card(value: str, digits: str, before: str) -> bool:
    if not 12 <= len(digits) <= 19 or "(" in value or "+" in value:
        return False
    if not luhn.is_valid(digits) or len(set(digits)) < 2:
        return False
    if not _CARD.fullmatch(digits):
        return _CARD_BEFORE.search(before) is not None
    groups = _GROUPS.findall(value)
    if len(groups) > 1 and (len(groups[0]) != 4 or any(len(group) < 2 for group in groups[1:-1])):
        return False
    return not _NO_CARD_BEFORE.search(before)


def _is_phone(value: str, digits: str, before: str, regions: tuple[str, ...]) -> bool:
    groups = _GROUPS.findall(value)
    if not 7 <= len(digits) <= 15 or len(set(digits)) < 3 or _DATE.match(value) or value.count("(") > 1:
        return False
    if value.startswith("+"):
        return _is_possible(value)
    if digits.startswith("00") and len(digits) >= 10 and _is_possible("+" + digits.removeprefix("00")):
        return True
    if _NO_PHONE_BEFORE.search(before) and not _PHONE_BEFORE.search(before[-16:]):
        return False
    if _PHONE_BEFORE.search(before):
        return _phone_groups(groups, value)
    if _NANP.match(value):
        return True
    if len(groups) < 2:  # digits only: a leading zero is what numbers of other kinds do not have
        return digits[0] == "0" and 10 <= len(digits) <= 11 and _is_valid(digits, regions)
    if not _phone_groups(groups, value) or len(digits) < 9:
        return False
    if not (value[0] in "(0" or len(groups) >= 3):
        return False
    return _is_valid(digits, regions)


def _phone_groups(groups: list[str], value: str) -> bool:
    """Whether digits are grouped as in phone numbers: two to five a group, one kind of separator for the most part."""
    if len(groups) == 1:
        return True
    if "." in value and len(groups) < 3:
        return False  # a decimal number
    return all(len(group) >= 2 or place == 0 or "(" in value for place, group in enumerate(groups))


@lru_cache(maxsize=4096)
def _is_possible(value: str) -> bool:
    try:
        number = phonenumbers.parse(value.replace("(0)", ""), None)
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_possible_number(number)


@lru_cache(maxsize=4096)
def _is_valid(digits: str, regions: tuple[str, ...]) -> bool:
    for region in regions:
        try:
            number = phonenumbers.parse(digits, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number_for_region(number, region):
            return True
    return False


def _find_ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        value = match.group()
        compact = [i for i, c in enumerate(value) if c.isalnum()]
        for length in _iban_lengths(value[:2], len(compact)):
            end = compact[length - 1] + 1
            after = value[end : end + 1] or text[match.end() : match.end() + 1]
            if after.isalnum():
                continue
            if _iban_checks("".join(value[i] for i in compact[:length])):
                yield Span("iban", match.start(), match.start() + end)
                break


def _iban_lengths(country: str, most: int) -> list[int]:
    """Lengths to try: the country's own, which python-stdnum's registry knows (ISO 13616), then all there is."""
    length = _country_length(country)
    return [each for each in dict.fromkeys((length, most)) if 15 <= each <= min(34, most)]


@lru_cache(maxsize=1024)
def _country_length(country: str) -> int:
    info = dict(stdnum_iban._ibandb.info(country + "00")[0][1])  # the registry that the library ships
    structure = info.get("bban", "")
    return 4 + sum(int(number) for number in re.findall(r"(\d+)!", structure)) if structure else 0


def _iban_checks(compact: str) -> bool:
    """ISO 7064 mod 97-10 over the rearranged string."""
    rearranged = compact[4:] + compact[:4]
    return int("".join(str(int(c, 36)) for c in rearranged)) % 97 == 1


class _Id(NamedTuple):
    """One country's number: what it looks like, who checks it, and the word that must announce a bare one."""

    pattern: re.Pattern[str]
    module: str
    before: re.Pattern[str] | None


def _id(pattern: str, module: str, before: str | None = None) -> _Id:
    announced = re.compile(rf"\b(?:{before})\b[^.!?\n]{{0,30}}$", re.IGNORECASE) if before else None
    return _Id(re.compile(rf"(?:{pattern})(?![\w-]|\.\d)"), f"stdnum.{module}", announced)


_TWO_DIGITS = re.compile(r"(?:[XYZ]|\d)\d[\d .+A-Z-]{6}")  # how every number below goes on after its letters


_IDS = (
    _id(r"\d{3}-\d{2}-\d{4}", "us.ssn"),
    _id(r"\d{3}[ -]\d{3}[ -]\d{3}", "ca.sin", "sin|social insurance"),
    _id(r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf"),
    _id(r"\d{11}", "br.cpf", "cpf"),
    _id(r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", "it.codicefiscale"),
    _id(r"\d{8}[A-HJ-NP-TV-Z]", "es.dni"),
    _id(r"[XYZ]\d{7}[A-HJ-NP-TV-Z]", "es.nie"),
    _id(r"[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}", "fr.nir"),
    _id(r"\d{11}", "pl.pesel", "pesel"),
    _id(r"\d{9}", "nl.bsn", "bsn|burgerservicenummer"),
    _id(r"\d{11}", "de.idnr", "steuer|idnr|tax id|identifikationsnummer"),
    _id(r"\d{4} \d{4} \d{4}", "in_.aadhaar", "aadhaar|uid"),
    _id(r"\d{17}[\dX]", "cn.ric"),
    _id(r"\d{6}[-+A]\d{3}[0-9A-Y]", "fi.hetu"),
    _id(r"(?:\d{2})?\d{6}[-+]\d{4}", "se.personnummer"),
    _id(r"\d{6}-\d{4}", "dk.cpr", "cpr"),
    _id(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", "be.nn"),
)


@lru_cache(maxsize=64)
def _checker(module: str) -> Callable[[str], bool]:
    return import_module(module).is_valid


def _find_national_ids(text: str) -> Iterator[Span]:
    for digits in _TWO_DIGITS.finditer(text):
        start = digits.start()
        while start and digits.start() - start < 6 and "A" <= text[start - 1] <= "Z":
            start -= 1
        if start and (text[start - 1].isalnum() or text[start - 1] in "_.-"):
            continue
        for kind in _IDS:
            match = kind.pattern.match(text, start)
            if match is None:
                continue
            if kind.before is not None and not kind.before.search(text[max(0, start - 48) : start]):
                continue
            if _checker(kind.module)(match.group()):
                yield Span("national_id", start, match.end())
                break

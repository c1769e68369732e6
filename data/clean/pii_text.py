"""Personal data and secrets that are recognised by their letters: e-mail, addresses of machines, keys.

Each detector yields spans of a text. Patterns start at a rare literal ("@", "://", "-----BEGIN") and are bounded in
length, so that time is linear in the text whatever it holds.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

VERSION = 1


class Span(NamedTuple):
    """text[start:end] is of this kind."""

    kind: str
    start: int
    end: int


# The domain first: it is what follows a literal; the part before "@" is then read backwards. RFC 5321 lengths.
_DOMAIN = re.compile(r"@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}([^\W\d_]{2,24}|xn--[a-z0-9-]{2,59})(?![\w-]|\.\w)")
_LOCAL_BACKWARDS = re.compile(r"[\w.+%'&/=-]{1,64}")
_FILE_ENDS = frozenset(
    ("png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "mjs", "ts", "html", "py", "ico", "bmp", "mp4", "json")
)  # logo@2x.png

_IPV4 = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}(?:[0-9a-fA-F]{0,4}|(?:\d{1,3}\.){3}\d{1,3})(?![\w:])")
_HEX_COLON = re.compile(r"[0-9a-fA-F]:[0-9a-fA-F:]|::[0-9a-fA-F]")
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:version|release|build|firmware|section|chapter|clause|figure|table|oid|update|patch)s?:?\s*"
    r"|\b(?:v|ver|vers|rev|sec)\b\.?\s?|§\s*|[=<>~^]=?\s*)$",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:]{1,256}:[^\s/@]{1,256}(?=@[\w\[])")
_PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PRIVATE_KEY_END = re.compile(r"-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_MAX_KEY_CHARS = 20_000  # characters of one private key: an RSA key of 16,384 bits has about 13,000

# Token formats as their issuers publish them.
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}"  # AWS access key id
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{40,255}"  # GitHub
    r"|glpat-[A-Za-z0-9_-]{20,64}"  # GitLab
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}"  # Slack
    r"|AIza[0-9A-Za-z_-]{35}"  # Google API
    r"|ya29\.[0-9A-Za-z_-]{20,500}"  # Google OAuth
    r"|(?:sk|rk|pk)_(?:live|test)_[0-9A-Za-z]{16,250}"  # Stripe
    r"|sk-(?:proj-|ant-|or-)?[A-Za-z0-9_-]{20,250}"  # OpenAI and those who followed
    r"|SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"  # SendGrid
    r"|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}"
    r"|eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,2000}"  # JSON web token
    r")(?![A-Za-z0-9_])"
)
_TOKEN_STARTS = (
    *("AKIA", "ASIA", "ABIA", "ACCA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "AIza"),
    *("ya29.", "sk_", "rk_", "pk_", "sk-", "SG.", "hf_", "npm_", "pypi-", "eyJ"),
)
_SECRET_NAMES = ("key", "secret", "token", "passw", "auth")
_ASSIGNED = re.compile(
    r"(?i:api[_-]?key|secret|token|passwd|password|auth)[\w-]{0,20}[\"']?\s{0,3}[:=]\s{0,3}"
    r"[\"']([A-Za-z0-9+/=_\-.]{16,200})[\"']"
)
_MIN_ENTROPY = 3.5  # bits a character: random base64 of 20 characters has about 4.0, words joined by "_" about 3.3


def find_emails(text: str) -> Iterator[Span]:
    """E-mail addresses, in brackets, before a full stop or at the end of the text too."""
    for match in _DOMAIN.finditer(text):
        at = match.start()
        before = _LOCAL_BACKWARDS.match(text[max(0, at - 64) : at][::-1])
        if before is None or match.group(1).lower() in _FILE_ENDS:
            continue
        local = before.group()[::-1]
        trimmed = local.lstrip(".'-/=&%")
        if not trimmed or trimmed[-1] == "." or ".." in trimmed:
            continue
        yield Span("email", at - len(trimmed), match.end())


def find_ips(text: str) -> Iterator[Span]:
    """IPv4 and IPv6 addresses; what a word like "version" announces is none, nor is 0.0.0.0 or a netmask."""
    for match in _IPV4.finditer(text):
        parts = match.group().split(".")
        if (
            _continues(text, match.start())
            or any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts)
            or parts[0] in ("0", "255")
        ):
            continue
        if not _VERSION_BEFORE.search(text[max(0, match.start() - 16) : match.start()]):
            yield Span("ip", match.start(), match.end())
    if any(chunk.count(":") > 1 and _HEX_COLON.search(chunk) for chunk in text.split() if ":" in chunk):
        for match in _IPV6.finditer(text):
            if _is_ipv6(match.group()):
                yield Span("ip", match.start(), match.end())


def _continues(text: str, start: int) -> bool:
    """Whether what starts here is the rest of a longer word or number."""
    before = text[start - 1 : start]
    return before.isalnum() or before in ("_", ".")


def _is_ipv6(value: str) -> bool:
    groups = [group for group in value.split(":") if group]
    if len(groups) < 2 or not any(c.isdigit() for c in value) or max(map(len, groups)) < 2:
        return False  # "a::b" is C++ more often than a network
    try:
        return ipaddress.IPv6Address(value) is not None
    except ValueError:
        return False


def find_secrets(text: str) -> Iterator[Span]:
    """Private keys, credentials in URLs, tokens of known issuers, and random strings assigned to a secret's name."""
    for match in _PRIVATE_KEY.finditer(text):
        end = _PRIVATE_KEY_END.search(text, match.end(), match.end() + _MAX_KEY_CHARS)
        yield Span("private_key", match.start(), end.end() if end else match.end())
    if "://" in text:
        for match in _CREDENTIALS.finditer(text):
            yield Span("url_credentials", match.start(), match.end())
    if any(start in text for start in _TOKEN_STARTS):
        for match in _TOKENS.finditer(text):
            value = match.group()
            if any(c.isdigit() for c in value) and _entropy(value) >= 3.0:  # "sk-learn-contrib-project" is none
                yield Span("api_key", match.start(), match.end())
    low = text.lower() if "'" in text or '"' in text else ""
    if any(name in low for name in _SECRET_NAMES):
        for match in _ASSIGNED.finditer(text):
            value = match.group(1)
            if any(c.isdigit() for c in value) and any(c.isalpha() for c in value) and _entropy(value) >= _MIN_ENTROPY:
                yield Span("api_key", match.start(1), match.end(1))


def _entropy(value: str) -> float:
    """Shannon entropy of the characters, bits a character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


_TITLED = re.compile(
    r"\b(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Sir|Dame|Herr|Frau|Mme|Señor|Señora)\.?\s((?:[A-Z][\w’'-]+\s?){1,3})(?<!\s)"
    r"|(?:[Mm]y name is|I am called|[Ss]igned,|Name:)\s((?:[A-Z][\w’'-]+\s?){1,3})(?<!\s)"
)


def find_names(text: str) -> Iterator[Span]:
    """Person names that a title or a phrase announces; few of all names, but hardly anything else."""
    for match in _TITLED.finditer(text):
        group = 1 if match.group(1) else 2
        yield Span("person", match.start(group), match.end(group))

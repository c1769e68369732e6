"""Wounds for files that readers are fuzzed with, and what must hold of every wounded file.

Wounds are of two kinds: of the bytes, and of the structure (a number where a list was, an element moved), which a
parser accepts and which so reach the code behind it.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from data.document import Document, Dropped
from data.sources.mediawiki import MediaWikiSource
from data.sources.stack_exchange import StackExchangeSource
from data.sources.twitter import TwitterSource

SECONDS = 5.0  # for one mutated file, on a busy machine
MANY = int(os.environ.get("SLUICE_FUZZ_CASES", "400"))
SIZES = pytest.mark.parametrize("cases", [24, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.long])])


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four random wounds: flips, cuts, doubled and swapped pieces, numbers made huge, hostile bytes put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            return bytes(out)
        at, size = rng.randrange(len(out)), rng.choice((1, 4, 64, 1024))
        kind = rng.randrange(7)
        if kind == 0:
            for index in range(at, min(at + size, len(out))):
                out[index] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + size]
        elif kind == 2:
            out = out[:at] if rng.random() < 0.3 else out[at:] if rng.random() < 0.1 else out
        elif kind == 3:
            out[at:at] = out[max(at - size, 0) : at] * rng.randint(1, 20)
        elif kind == 4:
            out[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"9999", b"-1\n\n", b"<![CDATA[", b"{{[["))
        elif kind == 5:
            other = rng.randrange(len(out))
            out[at : at + size], out[other : other + size] = out[other : other + size], out[at : at + size]
        else:
            out[at:at] = rng.choice(
                (b"<row ", b"\r\n\r\nWARC/1.0\r\n", b'"', b"\\begin{", b"<!ENTITY x SYSTEM 'file:///etc/passwd'>")
            )
    return bytes(out)


STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e308,
    float("inf"),
    10**30,
    "",
    "9" * 400,
    "\ud800",
    [],
    {},
    [[]],
    {"a": {}},
    [None, 7, "x"],
)


def confuse(value: Any, rng: random.Random) -> Any:
    """A JSON value with one node, chosen at random, of another type."""
    if not value or not isinstance(value, dict | list) or rng.random() < 0.15:
        return rng.choice(STRANGE)
    if isinstance(value, dict):
        name = rng.choice(list(value))
        return {**value, name: confuse(value[name], rng)}
    place = rng.randrange(len(value))
    return [*value[:place], confuse(value[place], rng), *value[place + 1 :]]


def confuse_json(data: bytes, rng: random.Random) -> bytes:
    """One object, or one to four of its lines, with a node of another type; well-formed JSON all the same."""
    lines = data.splitlines(keepends=True)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(confuse(json.loads(lines[at]), rng)).encode() + b"\n"
    return b"".join(lines)


def confuse_xml(data: bytes, rng: random.Random) -> bytes:
    """Elements lost, doubled, emptied, renamed or moved into others, attributes strange; well-formed all the same."""
    root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, load_dtd=False, huge_tree=True))
    for _ in range(rng.randint(1, 8)):
        elements = [element for element in root.iter() if isinstance(element.tag, str)][1:]
        if not elements:
            break
        element, other = rng.choice(elements), rng.choice(elements)
        parent, kind = element.getparent(), rng.randrange(6)
        if kind == 0 and parent is not None:
            parent.remove(element)
        elif kind == 1 and parent is not None:
            parent.append(copy.deepcopy(element))
        elif kind == 2:
            element.clear()
        elif kind == 3:
            element.tag = rng.choice((other.tag, "x", "p", "sec", "table", "text"))
        elif kind == 4 and element not in other.iterancestors() and element is not other:
            other.insert(0, element)
        else:
            for name in list(element.attrib) or ["id"]:
                element.set(name, rng.choice(("", "-1", "9" * 40, "../../x", "1")))
    return etree.tostring(root)


def confuse_rows(data: bytes, rng: random.Random) -> bytes:
    """Attributes of Stack Exchange rows lost and made strange."""
    lines = data.split(b"\n")
    for _ in range(rng.randint(1, 40)):
        at = rng.randrange(len(lines))
        found = list(re.finditer(rb' (\w+)="([^"]*)"', lines[at]))
        if found:
            hit = rng.choice(found)
            new = rng.choice((b"", b' %s=""' % hit[1], b' %s="-7"' % hit[1], b' %s="x"' % hit[1], b' Id="1"'))
            lines[at] = lines[at][: hit.start()] + new + lines[at][hit.end() :]
    return b"\n".join(lines)


def wound(
    data: bytes,
    path: Path,
    cases: int,
    seed: int,
    look: Callable[[int, bytes], None],
    confuse_it: Callable[[bytes, random.Random], bytes] | None = None,
) -> None:
    """`look` at each of the mutated files, within its time."""
    rng = random.Random(seed)
    for case in range(cases):
        wounded = confuse_it(data, rng) if confuse_it and case % 2 else mutate(data, rng)
        path.write_bytes(wounded)
        start = time.monotonic()
        look(case, wounded)
        assert time.monotonic() - start < SECONDS, f"case {case} took {time.monotonic() - start:.1f} s"


# Readers that name a record by the identifier it brings, which a wounded file may hold twice.
OWN_IDS = (MediaWikiSource, StackExchangeSource, TwitterSource)


def check(source: Any) -> tuple[int, int]:
    """(documents, drops) of one mutated file, in records; every item is sound and can be written."""
    kept, dropped, _ = read_all(source)
    return kept, dropped


def read_all(source: Any) -> tuple[int, int, dict[str, Any]]:
    """(records kept, records dropped, {id: offset}) of a file; no id is given twice."""
    kept, dropped, offsets = 0, 0, dict[str, Any]()
    for shard in source.shards():
        for item in source.documents(shard):
            assert isinstance(item, Document | Dropped)
            document = item if isinstance(item, Document) else item.document
            document.text.encode()
            document.id.encode()
            json.dumps(document.meta, allow_nan=False).encode()
            own = isinstance(source, OWN_IDS)
            assert own or document.id not in offsets, f"{document.id} is given twice"
            offsets[document.id] = document.meta.get("offset")
            if isinstance(item, Document):
                kept += document.meta.get("records", 1)
            else:
                dropped += document.meta.get("records", 1)
    return kept, dropped, offsets

"""Stage keys: a hash of everything that shapes a stage's bytes, and of nothing else.

    key = hash(name, version, settings, versions of libraries, keys of the inputs)

Worker counts, paths of the output and times never enter.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import PurePath
from typing import Any

import xxhash

from data import tables
from data.stage import NOT_IN_KEY

KEY_DIGITS = 16  # hexadecimal digits, 64 bits: a dataset has tens of keys


def plain(value: Any) -> Any:
    """JSON form of a setting: a dataclass becomes an object with its class name as "type", without NOT_IN_KEY fields.

    Raises TypeError for values that say nothing stable about themselves.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("in_key", True) is not NOT_IN_KEY["in_key"]
        }
        return {"type": type(value).__name__, **named}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=canonical)
    if isinstance(value, re.Pattern):
        return {"pattern": value.pattern, "flags": value.flags}
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"a setting of type {type(value).__name__} cannot be part of a stage key: {value!r}")


def canonical(value: Any) -> str:
    """One JSON text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def make_key(
    name: str, *, version: int, settings: Any, inputs: Any, libraries: Iterable[str] = (), writes_tables: bool = True
) -> str:
    """The key of a stage. inputs: the keys of the stages before it, or a source's inputs_key."""
    parts = {
        "name": name,
        "version": version,
        "settings": plain(settings),
        "inputs": plain(inputs),
        "libraries": library_versions([*libraries, *tables.LIBRARIES] if writes_tables else libraries),
        "tables": tables.VERSION,
        "unicode": unicodedata.unidata_version,  # str.isalpha() and the like follow it
    }
    return xxhash.xxh3_128_hexdigest(canonical(parts).encode("ascii"))[:KEY_DIGITS]


def library_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions; ValueError naming one that is missing."""
    versions = {}
    for library in sorted(set(libraries)):
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            raise ValueError(f"package {library!r} is not installed; pip install -r requirements.txt") from None
    return versions

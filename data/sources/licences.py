"""Which licence a text is under, as an SPDX identifier, told by tags and by phrases that only one licence has."""

from __future__ import annotations

import re

SPDX_TAG = re.compile(r"SPDX-License-Identifier:\s*\(?([A-Za-z0-9.+-]+(?:\s+(?:OR|AND|WITH)\s+[A-Za-z0-9.+-]+)*)\)?")
LICENCE_FILE = re.compile(r"(^|/)(licen[cs]e|copying|unlicense|notice)([._-][^/]*)?$", re.I)
SPACE = re.compile(r"[\s*#/;\"'-]+")
HEAD_CHARS = 4000  # characters of a source file that may name its licence

# (identifier, phrases that must all occur, phrases that must not), the more particular before the more general;
# phrases are from the licence texts of the SPDX list, lower case, white space and punctuation folded to one space.
PHRASES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("Apache-2.0", ("apache license", "version 2.0"), ()),
    ("AGPL-3.0", ("gnu affero general public license", "version 3"), ()),
    ("LGPL-3.0", ("gnu lesser general public license", "version 3"), ()),
    ("LGPL-2.1", ("gnu lesser general public license", "version 2.1"), ()),
    ("GPL-3.0", ("gnu general public license", "version 3"), ()),
    ("GPL-2.0", ("gnu general public license", "version 2"), ()),
    ("MPL-2.0", ("mozilla public license", "2.0"), ()),
    ("EPL-2.0", ("eclipse public license", "2.0"), ()),
    ("BSL-1.0", ("boost software license",), ()),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",), ()),
    ("CC0-1.0", ("cc0 1.0 universal",), ()),
    ("CC-BY-SA-4.0", ("attribution sharealike 4.0 international",), ()),
    ("CC-BY-4.0", ("attribution 4.0 international",), ()),
    ("BSD-4-Clause", ("redistribution and use in source and binary forms", "all advertising materials"), ()),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote products"), ()),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",), ("endorse or promote",)),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose with or",), ()),
    ("ISC", ("permission to use, copy, modify, and or distribute this software for any purpose with or",), ()),
    ("MIT", ("permission is hereby granted, free of charge", "substantial portions of the software"), ()),
    ("Zlib", ("this software is provided as is , without any express or implied warranty", "altered source"), ()),
    ("PSF-2.0", ("python software foundation license",), ()),
    ("MIT", ("the mit license",), ()),
    ("MIT", ("mit license",), ()),
)


def detect_licence(text: str) -> str | None:
    """The SPDX identifier of a licence text or of a file's header; None where nothing is recognised."""
    if tag := SPDX_TAG.search(text[:HEAD_CHARS]):
        return " ".join(tag.group(1).split())
    folded = SPACE.sub(" ", text[:40_000].lower())
    for name, wanted, unwanted in PHRASES:
        if all(phrase in folded for phrase in wanted) and not any(phrase in folded for phrase in unwanted):
            return name
    return None


def header_licence(text: str) -> str | None:
    """The licence that a source file's own header names; None for most files."""
    return detect_licence(text[:HEAD_CHARS])


def repository_licence(files: dict[str, str]) -> str | None:
    """The licence of a repository from its licence files {path: text}: those nearest the root decide."""
    for path in sorted(files, key=lambda path: (path.count("/"), path)):
        if found := detect_licence(files[path]):
            return found
    return None

"""WordNet read from its own files: which words are synonyms, in which sense, and how common that sense is.

    load_wordnet("/usr/share/wordnet")                  Princeton WordNet 3.0, as Debian's wordnet-base installs it
    load_omw("omw-1.4/fra/wn-data-fra.tab")             a language of the Open Multilingual WordNet

The database format is that of wndb(5WN): `index.noun` gives each word its synsets, most common first, `data.noun` the
words of each synset; `cntlist.rev` how often each sense was seen in tagged text. (nltk's reader refuses Debian's
folder, which has no `lexnames`; `wn` reads only LMF.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import xxhash

VERSION = 1
PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
_SS_TYPE = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
_MOST_COMMON = 0.6  # share of a word's tagged uses that its first sense must have to be taken for the sense meant
_RANK = 2  # the place among a synonym's own senses that the shared sense must have at the least

Synonyms = Mapping[tuple[str, str], tuple[str, ...]]


@lru_cache(maxsize=4)
def load_wordnet(folder: str) -> Synonyms:
    """{(word, part of speech): synonyms} of single English words, once a process.

    A word is taken in its most common sense, and only where that sense is the usual one: no other, or at least
    `_MOST_COMMON` of its uses in tagged text. A synonym must have the sense among its own first two. So "bank" and
    "run" have none, and "buy" has "purchase".
    """
    root = Path(folder)
    check_folder(root)
    counts = _sense_counts(root)
    first: dict[tuple[str, str], list[str]] = {}
    members: dict[tuple[str, str], list[str]] = {}
    for part, letter in PARTS.items():
        for line in _lines(root / f"index.{part}"):
            fields = line.split()
            word, senses, pointers = fields[0], int(fields[2]), int(fields[3])
            if "_" not in word:
                first[word, letter] = fields[6 + pointers : 6 + pointers + senses]
        for line in _lines(root / f"data.{part}"):
            fields = line.split(" ", 4 + 2 * 64)
            number = int(fields[3], 16)
            members[letter, fields[0]] = [
                fields[4 + 2 * i].split("(")[0] for i in range(number) if 4 + 2 * i < len(fields)
            ]
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for (word, letter), offsets in first.items():
        if len(offsets) > 1 and not _dominant(counts.get((word, letter), [])):
            continue
        same = tuple(
            other
            for other in members.get((letter, offsets[0]), ())
            if other.isalpha()
            and other.islower()
            and other != word
            and offsets[0] in first.get((other, letter), ())[:_RANK]
        )
        if same and word.isalpha():
            found[word, letter] = same
    return found


@lru_cache(maxsize=4)
def load_omw(path: str) -> Synonyms:
    """{(word, part of speech): synonyms} of one language of the Open Multilingual WordNet, from its tab file.

    Such files have no order of senses: only words that belong to a single synset are taken, and replaced.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"no Open Multilingual WordNet at {path}: expected a tab file such as wn-data-fra.tab")
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    synsets: dict[str, set[tuple[str, str]]] = defaultdict(set)
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            fields = line.rstrip("\n").split("\t")
            if line.startswith("#") or len(fields) < 3 or not fields[1].endswith("lemma"):
                continue
            offset, _, letter = fields[0].rpartition("-")
            synset = ("a" if letter == "s" else letter, offset)
            members[synset].append(fields[2])
            synsets[fields[2]].add(synset)
    single = {word: next(iter(found)) for word, found in synsets.items() if len(found) == 1 and word.isalpha()}
    out = {}
    for word, synset in single.items():
        same = tuple(dict.fromkeys(other for other in members[synset] if other != word and other in single))
        if same and word.islower():
            out[word, synset[0]] = tuple(other for other in same if other.islower())
    return {key: same for key, same in out.items() if same}


def files_key(path: str) -> str:
    """A hash of what is read: names, sizes and contents. ValueError where it is not there."""
    root = Path(path)
    if root.is_file():
        files = [root]
    else:
        check_folder(root)
        files = [*(root / f"{kind}.{part}" for part in PARTS for kind in ("index", "data")), root / "cntlist.rev"]
    digest = xxhash.xxh3_64()
    for file in files:
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def check_folder(root: Path) -> None:
    """ValueError where a file of WordNet is missing."""
    wanted = [*(f"{kind}.{part}" for part in PARTS for kind in ("index", "data")), "cntlist.rev"]
    missing = [name for name in wanted if not (root / name).is_file()]
    if missing:
        raise ValueError(
            f"no WordNet at {root}: {', '.join(missing[:3])} missing; install Debian's wordnet-base, or give the dict "
            "folder of WordNet 3.0"
        )


def _dominant(counts: list[int]) -> bool:
    return bool(counts) and counts[0] >= _MOST_COMMON * sum(counts) and counts[0] >= 2


def _sense_counts(root: Path) -> dict[tuple[str, str], list[int]]:
    """Tagged uses of each sense of a word, most common sense first."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(list)
    for line in _lines(root / "cntlist.rev"):
        key, number, count = line.split()
        word, _, rest = key.partition("%")
        senses = counts[word, _SS_TYPE[rest[0]]]
        place = int(number) - 1
        senses.extend([0] * (place + 1 - len(senses)))
        senses[place] = int(count)
    return counts


def _lines(path: Path) -> list[str]:
    """The lines of a database file without its licence, whose lines begin with a space."""
    return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line[:1] != " "]

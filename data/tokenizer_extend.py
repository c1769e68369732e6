"""New languages for a pretrained byte-level BPE tokenizer, while text without them keeps its ids.

The base tokenizer cuts the target text as it always does; then merging goes on where it stopped: the pair of
neighbours whose merge saves most tokens becomes a piece, again and again. New merges come after all old ones, and each
new piece holds a character (or begins one) that the protected text does not have. So a text of ASCII and of characters
of the protected text has the same ids as before: none of its neighbours is ever merged by a new rule.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as Backend

from data.languages import language_of
from data.tables import atomic_path
from data.tokenizer_bytes import piece_bytes
from data.tokenizer_sample import HashSample, training_documents

VERSION = 1
CODE_MODULES = ("data.languages", "data.tokenizer_bytes", "data.tokenizer_extend", "data.tokenizer_sample")
PROTECTED_BYTES = 2_000_000  # UTF-8 bytes of text in other languages whose characters are protected
LEAST_COUNT = 2  # a pair that the sample holds once is no rule


class TokenizerSource(Protocol):
    """A frozen dataclass that writes a ready tokenizer (one with a tokenizer.json) where one would be trained."""

    def write(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`, which is there and empty."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenizerExtension:
    """A dataset's tokenizer: a pretrained one with pieces for more languages.

    base: where the pretrained one comes from. languages: whose training text gets pieces; the characters of all other
    training text are protected. new_pieces: how many at most. sample_bytes: of target text, by hash of document id.
    """

    base: TokenizerSource
    languages: tuple[str, ...]
    new_pieces: int = 4000
    sample_bytes: int = 10_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.languages or self.new_pieces < 1 or self.sample_bytes < 1:
            raise ValueError(
                f"TokenizerExtension: languages={self.languages}, new_pieces={self.new_pieces} and sample_bytes="
                f"{self.sample_bytes}: expected at least one language, piece and byte"
            )


def extend_tokenizer(config: TokenizerExtension, shards: Sequence[Path], output: Path) -> int:
    """Write the extended tokenizer's folder; the number of new pieces.

    Raises ValueError in one line for a language without training text, or a base that is not byte-level BPE.
    """
    config.base.write(output)
    targets = {language: HashSample(config.sample_bytes, config.seed) for language in config.languages}
    protected = HashSample(PROTECTED_BYTES, config.seed)
    for document in training_documents(shards):
        targets.get(language_of(document), protected).add(document)
    empty = [language for language, sample in targets.items() if not sample.texts()]
    if empty:
        raise ValueError(f"TokenizerExtension: no training text in {', '.join(empty)}")
    path = output / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    kept = protected.texts()
    target = [text for sample in targets.values() for text in sample.texts()]
    extended, count = extend_bpe(spec, target, kept, config.new_pieces)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(extended, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return count


def extend_bpe(
    spec: dict[str, Any], target: Iterable[str], protected: Sequence[str], new_pieces: int
) -> tuple[dict[str, Any], int]:
    """A tokenizer.json with up to `new_pieces` pieces for `target`, and how many there are.

    New ids follow all old ones; ids of text made of ASCII and of characters of `protected` stay what they were.
    """
    if spec["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(spec.get("pre_tokenizer")):
        raise ValueError(f"only byte-level BPE can be extended; this tokenizer.json is {spec['model']['type']}")
    backend = Backend.from_str(json.dumps(spec))
    words = _words(backend, target)
    known = {chr(code) for code in range(128)} | set().union(*map(set, protected))
    merges = _new_merges(words, spec["model"]["vocab"], known, new_pieces)
    vocab = dict(spec["model"]["vocab"])
    first = 1 + max([*vocab.values(), *(token["id"] for token in spec.get("added_tokens") or [])])
    fresh = list(dict.fromkeys(left + right for left, right in merges if left + right not in vocab))
    vocab |= {piece: first + place for place, piece in enumerate(fresh)}
    old = spec["model"]["merges"]
    joined = [" ".join(pair) if old and isinstance(old[0], str) else list(pair) for pair in merges]
    extended = {**spec, "model": {**spec["model"], "vocab": vocab, "merges": [*old, *joined]}}
    after = Backend.from_str(json.dumps(extended))
    for text in protected:
        if backend.encode(text, add_special_tokens=False).ids != after.encode(text, add_special_tokens=False).ids:
            raise ValueError(f"the extension would change the ids of protected text: {text[:60]!r}")
    return extended, len(fresh)


def _words(backend: Backend, texts: Iterable[str]) -> Counter[tuple[str, ...]]:
    """How often each word of the texts is there, as the base tokenizer's pieces."""
    counts: Counter[str] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    return Counter(
        {tuple(token.value for token in backend.model.tokenize(word)): count for word, count in counts.items()}
    )


def _new_merges(
    words: Counter[tuple[str, ...]], vocab: dict[str, int], known: set[str], limit: int
) -> list[tuple[str, str]]:
    """The merges, the one that saves most first, until they make `limit` new pieces or none saves anything."""
    heads = frozenset(head for character in known for head in _heads(character.encode()))

    @cache
    def allowed(piece: str) -> bool:
        return _is_foreign(piece_bytes(piece), known, heads)

    sequences = [list(word) for word in sorted(words)]
    counts = [words[tuple(sequence)] for sequence in sequences]
    pairs: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for number, sequence in enumerate(sequences):
        for pair in itertools.pairwise(sequence):
            pairs[pair] += counts[number]
            places[pair].add(number)
    heap = [(-count, pair) for pair, count in pairs.items() if allowed(pair[0] + pair[1])]
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    made: set[str] = set()
    while heap and len(made) < limit:
        negative, pair = heapq.heappop(heap)
        if pairs[pair] != -negative:  # counted again since
            if pairs[pair] >= LEAST_COUNT:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if -negative < LEAST_COUNT:
            break
        piece = pair[0] + pair[1]
        merges.append(pair)
        if piece not in vocab:
            made.add(piece)
        grown: set[tuple[str, str]] = set()
        for number in places.pop(pair):
            before, count = sequences[number], counts[number]
            after = _merged(before, pair, piece)
            for old in itertools.pairwise(before):
                pairs[old] -= count
            for new in itertools.pairwise(after):
                pairs[new] += count
                places[new].add(number)
                grown.add(new)
            sequences[number] = after
        for new in sorted(grown):
            if piece in new and allowed(new[0] + new[1]):
                heapq.heappush(heap, (-pairs[new], new))
    return merges


def _merged(sequence: list[str], pair: tuple[str, str], piece: str) -> list[str]:
    merged, place = [], 0
    while place < len(sequence):
        if tuple(sequence[place : place + 2]) == pair:
            merged.append(piece)
            place += 2
        else:
            merged.append(sequence[place])
            place += 1
    return merged


def _is_foreign(piece: bytes, known: set[str], heads: frozenset[bytes]) -> bool:
    """Whether text of `known` characters can never hold these bytes: a whole other character, or the start of one."""
    begins = [place for place, byte in enumerate(piece) if byte & 0xC0 != 0x80]  # of characters
    for begin, end in zip(begins, [*begins[1:], len(piece)]):
        part = piece[begin:end]
        try:
            if part.decode() not in known:
                return True
        except UnicodeDecodeError:  # the last one is not whole
            if len(part) > 1 and part not in heads:
                return True
    return False


def _heads(encoded: bytes) -> list[bytes]:
    return [encoded[:length] for length in range(2, len(encoded))]

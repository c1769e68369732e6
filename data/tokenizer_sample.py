"""The text that a tokenizer is trained on: a bounded sample of the training documents, balanced over languages."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import xxhash

from data.document import Document
from data.languages import language_of, script_of
from data.tables import read_documents

SPACE = "▁"  # U+2581, how SentencePiece writes a space while it trains
CHUNK_CHARS = 4096  # characters: documents are cut into chunks of this size, before line breaks or spaces
DOCUMENT_SHARE = 16  # one document gives at most 1/16 of the sample
# Characters that SentencePiece reserves while training: NUL, its space, its unknown mark (U+2585). A tab never becomes
# part of a longer piece, so it stands in for them.
RESERVED = str.maketrans({"\0": "\t", SPACE: "\t", "▅": "\t"})


class HashSample:
    """The documents with the smallest hash of (seed, id), up to about `budget` UTF-8 bytes, whatever comes in.

    The choice does not depend on the order of documents, and memory stays near the budget for input of any size.
    """

    def __init__(self, budget: int, seed: int):
        self.budget, self._seed = budget, seed
        self._heap: list[tuple[int, str, str, int]] = []  # (-hash, id, text, bytes): the largest hash on top
        self._total = 0

    def add(self, document: Document) -> None:
        """Take a document in, if its hash is among the smallest so far."""
        key = xxhash.xxh64_intdigest(document.id.encode(), self._seed)
        if self._total >= self.budget and -key <= self._heap[0][0]:
            return
        text = document.text[: max(self.budget // DOCUMENT_SHARE, CHUNK_CHARS)]
        size = len(text.encode())
        heapq.heappush(self._heap, (-key, document.id, text, size))
        self._total += size
        while self._total - self._heap[0][3] >= self.budget:
            self._total -= heapq.heappop(self._heap)[3]

    def texts(self) -> list[str]:
        """The texts in the order of their hashes."""
        return [text for _, _, text, _ in sorted(self._heap, key=lambda item: (-item[0], item[1]))]


def sample_texts(shards: Iterable[Path], sample_bytes: int, seed: int) -> list[str]:
    """Texts of training documents (meta split "train", or none), up to `sample_bytes` UTF-8 bytes in all, as they come.

    The choice does not depend on how documents are spread over shards.
    """
    sample = HashSample(sample_bytes, seed)
    for document in training_documents(shards):
        sample.add(document)
    return sample.texts()


def balanced_texts(
    shards: Sequence[Path], sample_bytes: int, seed: int, alpha: float, languages: Sequence[str] = ()
) -> list[str]:
    """A sample in which language l has a share proportional to n_l ** alpha, n_l being its bytes of training text.

    A language with less text than its share is repeated until it has it; documents of a language are chosen as in
    `sample_texts`. languages: those that are used, each of which must have text; empty for all that there are. Two
    passes over the shards, memory near `sample_bytes`. Raises ValueError in one line for a language without text.
    """
    sizes: Counter[str] = Counter()
    for document in training_documents(shards):
        sizes[language_of(document)] += len(document.text.encode())
    budgets = language_budgets(sizes, sample_bytes, alpha, languages)
    samples = {language: HashSample(budget, seed) for language, budget in budgets.items()}
    for document in training_documents(shards):
        sample = samples.get(language_of(document))
        if sample is not None:
            sample.add(document)
    return [text for language in sorted(samples) for text in _filled(samples[language])]


def language_budgets(
    sizes: Mapping[str, int], sample_bytes: int, alpha: float, languages: Sequence[str] = ()
) -> dict[str, int]:
    """Bytes of the sample for each language; in all `sample_bytes`, or what text there is where that is less."""
    absent = [language for language in languages if not sizes.get(language)]
    if absent:
        found = ", ".join(sorted(language for language, size in sizes.items() if size)) or "none"
        raise ValueError(f"tokenizer.languages: no training text in {', '.join(absent)}; there is text in {found}")
    used = {language: sizes[language] for language in languages or sorted(sizes) if sizes[language]}
    total, shares = min(sample_bytes, sum(used.values())), {name: size**alpha for name, size in used.items()}
    whole = sum(shares.values())
    return {language: max(1, round(total * share / whole)) for language, share in shares.items()}


def training_documents(shards: Iterable[Path]) -> Iterator[Document]:
    """The documents of `shards` that are for training and not empty."""
    for shard in shards:
        for document in read_documents(shard):
            if document.meta.get("split", "train") == "train" and document.text:
                yield document


def covered_texts(texts: Sequence[str], default: float, by_script: Mapping[str, float]) -> list[str]:
    """The texts with each script's rarest characters replaced by tabs, which are part of no longer piece.

    Of the characters of a script, the most frequent are kept until they make up `by_script[script]`, or `default`, of
    its occurrences. Raises ValueError in one line for a script that the texts do not hold.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    scripts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for character, count in counts.items():
        scripts[script_of(character)].append((-count, character))
    for script in by_script:
        if script not in scripts:
            raise ValueError(
                f"tokenizer.script_coverage: no character of script {script!r} in the training text; "
                f"it has {', '.join(sorted(scripts))}"
            )
    rare = {}
    for script, found in scripts.items():
        wanted = by_script.get(script, default) * -sum(count for count, _ in found)
        for count, character in sorted(found):
            if wanted <= 0:
                rare[ord(character)] = "\t"
            wanted += count
    return [text.translate(rare) for text in texts]


def training_chunks(text: str) -> Iterator[str]:
    """Cut a text into pieces for the trainer, before line breaks where there are some: it strips those at an end."""
    text = text.translate(RESERVED)
    start = 0
    while start < len(text):
        stop = start + CHUNK_CHARS
        if stop < len(text):
            newline = text.rfind("\n", start + 1, stop)
            stop = newline if newline > 0 else stop
        yield text[start:stop]
        start = stop


def _filled(sample: HashSample) -> Iterator[str]:
    """The texts of a sample, again and again until its budget is met."""
    texts, left = sample.texts(), sample.budget
    for text in cycle(texts):
        if left <= 0:
            return
        yield text
        left -= len(text.encode())

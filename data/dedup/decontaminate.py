"""Decontamination: no training document shares a long run of words with what the model is evaluated on.

Reads meta["split"] (set by data.heldout): documents of "heldout", and named evaluation sets from files, are what must
not leak; all other documents are checked. An n-gram that many documents contain is boilerplate (a licence header) and
no evidence of a leak, so n-grams above a document frequency do not count. The matched words go into the drop.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from data.dedup.evaluation_sets import EvaluationSet
from data.dedup.rows import Rows, RowWriter, SurvivorPolicy, load_array, mark_whole, save_array, whole_count
from data.dedup.runs import plan_ranges, sorted_pairs, write_run
from data.dedup.shingles import Shingles, batches, hash_shingles, unique_sorted, word_spans
from data.dedup.verdicts import Alarms
from data.document import Document, Drop, Dropped
from data.engine import Engine
from data.stage import NOT_IN_KEY, Counts, shard_name
from data.tables import open_documents, open_dropped, read_documents, write_json

VERSION = 1
HELDOUT = "heldout"
_READ_DOCUMENTS = 256  # documents hashed together


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """The stage. Drops: `heldout_overlap` (value = the matched words, threshold = how many, partner = whose they are).

    size: words of an n-gram (13 as in GPT-3, Brown et al. 2020, appendix C). Held-out texts with fewer are no evidence.
    max_document_frequency: an n-gram in more documents than this, training and held-out together, does not count.
    action: "drop" the document, or "cut" the matched words out of it and drop it only when fewer than
        `min_words_left` words remain; meta["decontaminated_words"] then says how many were cut.
    evaluation: named evaluation sets in files; their partner ids are NAME:PLACE.
    """

    name: ClassVar[str] = "decontaminate"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = (
        "data.dedup.decontaminate",
        "data.dedup.evaluation_sets",
        "data.dedup.rows",
        "data.dedup.runs",
        "data.dedup.shingles",
    )
    libraries: ClassVar[tuple[str, ...]] = ("pyarrow", "xxhash", "numpy")

    size: int = 13
    max_document_frequency: int = 20
    action: Literal["drop", "cut"] = "drop"
    min_words_left: int = 50
    evaluation: tuple[EvaluationSet, ...] = ()
    alarms: Alarms = field(default_factory=Alarms, metadata=NOT_IN_KEY)
    memory_bytes: int = field(default=1 << 30, metadata=NOT_IN_KEY)

    def __post_init__(self) -> None:
        if self.size < 2 or self.max_document_frequency < 2 or self.min_words_left < 1:
            raise ValueError(
                "Decontaminate: size and max_document_frequency must be at least 2 and min_words_left at least 1, got "
                f"{self.size}, {self.max_document_frequency}, {self.min_words_left}"
            )
        if self.action not in ("drop", "cut"):
            raise ValueError(f"Decontaminate: action must be drop or cut, got {self.action!r}")

    def inputs_key(self) -> Any:
        """What the evaluation files hold, for the stage key."""
        return [part.inputs_key() for part in self.evaluation]

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """Remove or cut training documents. ValueError when there is nothing to compare with."""
        scratch = output / "scratch"
        held = _gather(self, inputs, scratch, engine)
        for name in ("kept", "dropped"):
            (output / name).mkdir(parents=True, exist_ok=True)
        numbers = list(range(len(inputs)))
        paths = tuple(map(str, inputs))
        engine.map_shards(partial(_match, self, str(scratch), paths), numbers, label=f"{self.name}: match")
        frequent = _frequent(self, scratch, len(inputs))
        job = partial(_write, self, held, str(scratch), str(output), paths)
        results = engine.map_shards(job, numbers, label=f"{self.name}: write")
        totals: dict[str, tuple[int, int]] = {}
        for _, sources in results:
            for name, (count, gone) in sources.items():
                before = totals.get(name, (0, 0))
                totals[name] = before[0] + count, before[1] + gone
        self.alarms.check_sources(self.name, totals)
        short = sum(int(load_array(folder / "short.npy")[0]) for folder in held.folders)
        write_json(
            output / "dedup.json",
            {
                "sources": dict(sorted(totals.items())),
                "heldout_documents": len(held),
                "heldout_too_short": short,
                "ngrams": len(load_array(scratch / "ngrams.npy")),
                "ngrams_too_frequent": frequent,
            },
        )
        shutil.rmtree(scratch, ignore_errors=True)
        return sum((counts for counts, _ in results), Counts())

    def shingles(self) -> Shingles:
        """How documents are hashed."""
        return Shingles(size=self.size)


def _gather(stage: Decontaminate, inputs: Sequence[Path], scratch: Path, engine: Engine) -> Rows:
    """All n-grams of the held-out side: ngrams.npy (sorted), owners.npy (rows), df.npy (held-out documents)."""
    tasks: list[tuple[str | EvaluationSet, str]] = [
        (str(path), str(scratch / "held" / f"{number:05d}")) for number, path in enumerate(inputs)
    ]
    tasks += [(part, str(scratch / "held" / f"set{number:05d}")) for number, part in enumerate(stage.evaluation)]
    counts = engine.map_shards(partial(_hash_held, stage), tasks, label=f"{stage.name}: held-out")
    rows = Rows.of([Path(folder) for _, folder in tasks], counts)
    if not len(rows):
        raise ValueError(
            "decontaminate: no held-out document and no evaluation set to compare with: put HeldOut before this stage "
            "or name evaluation sets"
        )
    order = rows.order(np.arange(len(rows)))  # by id: an n-gram of several held-out documents belongs to the first
    rank = np.empty(len(rows), np.int64)
    rank[order] = np.arange(len(rows))
    save_array(scratch / "rank.npy", rank)
    ranges = plan_ranges([folder / "ngrams" for folder in rows.folders], rows.starts[:-1], stage.memory_bytes)
    parts = [(piece, str(scratch / "merged" / f"{number:05d}")) for number, piece in enumerate(ranges)]
    engine.map_shards(partial(_merge_held, str(scratch)), parts, label=f"{stage.name}: merge")
    for name, kind in (("ngrams", np.uint64), ("owners", np.int64), ("df", np.int64)):
        arrays = [load_array(Path(folder) / f"{name}.npy") for _, folder in parts]
        save_array(scratch / f"{name}.npy", np.concatenate(arrays) if arrays else np.empty(0, kind))
    return rows


def _hash_held(stage: Decontaminate, task: tuple[str | EvaluationSet, str]) -> int:
    """The held-out documents of one shard or evaluation set; how many."""
    given, folder = task[0], Path(task[1])
    done = whole_count(folder)
    if done is not None:
        return done
    if isinstance(given, EvaluationSet):
        documents = given.documents()
    else:
        documents = (d for d in read_documents(Path(given)) if d.meta.get("split") == HELDOUT)
    writer = RowWriter(SurvivorPolicy(longest=False))
    texts: list[str] = []
    for document in documents:
        writer.add(document)
        texts.append(document.text)
    hashes, owners, short = [], [], 0
    for first, last in batches(texts):
        found = unique_sorted(hash_shingles(texts[first:last], stage.shingles(), whole_only=True))
        sizes = np.diff(found.starts)
        short += int((sizes == 0).sum())
        hashes.append(found.values)
        owners.append(np.repeat(np.arange(first, last), sizes))
    nothing = np.empty(0, np.int64)
    write_run(
        folder / "ngrams",
        np.concatenate(hashes) if hashes else nothing.astype(np.uint64),
        np.concatenate(owners) if owners else nothing,
    )
    save_array(folder / "short.npy", np.array([short]))
    return mark_whole(folder, writer.save(folder))


def _merge_held(scratch: str, task: tuple[Any, str]) -> int:
    piece, folder = task
    keys, rows = sorted_pairs(piece)
    new = np.ones(len(keys), bool)
    new[1:] = keys[1:] != keys[:-1]
    first = np.flatnonzero(new)
    rank = load_array(Path(scratch) / "rank.npy")
    order = np.argsort(rank)
    save_array(Path(folder) / "ngrams.npy", keys[first])
    save_array(Path(folder) / "owners.npy", order[np.minimum.reduceat(rank[rows], first)] if len(first) else rows)
    save_array(Path(folder) / "df.npy", np.diff(np.append(first, len(keys))))
    return len(first)


def _match(stage: Decontaminate, scratch: str, inputs: tuple[str, ...], number: int) -> int:
    """Which n-grams of the held-out side occur in which training documents of a shard."""
    folder = Path(scratch) / "match" / f"{number:05d}"
    done = whole_count(folder)
    if done is not None:
        return done
    ngrams = load_array(Path(scratch) / "ngrams.npy")
    hits, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]

    def flush(texts: list[str], where: list[int]) -> None:
        for first, last in batches(texts):
            found = unique_sorted(hash_shingles(texts[first:last], stage.shingles(), whole_only=True))
            index, inside = find(ngrams, found.values)
            hits.append(index[inside])
            places.append(np.repeat(np.array(where[first:last]), np.diff(found.starts))[inside])

    texts: list[str] = []
    where: list[int] = []
    for place, document in enumerate(read_documents(Path(inputs[number]))):
        if document.meta.get("split") != HELDOUT:
            texts.append(document.text)
            where.append(place)
        if len(texts) == _READ_DOCUMENTS:
            flush(texts, where)
            texts, where = [], []
    flush(texts, where)
    save_array(folder / "hits.npy", np.concatenate(hits))
    save_array(folder / "places.npy", np.concatenate(places))
    return mark_whole(folder, sum(map(len, hits)))


def find(ngrams: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value stands in a sorted array, and whether it is there: int64 and bool arrays like `values`."""
    if not len(ngrams):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    index = np.minimum(np.searchsorted(ngrams, values), len(ngrams) - 1)
    return index, ngrams[index] == values


def _frequent(stage: Decontaminate, scratch: Path, shards: int) -> int:
    """Write evidence.npy: which n-grams are rare enough to count; how many matched n-grams are not."""
    frequency = np.array(load_array(scratch / "df.npy"))
    matched = np.zeros(len(frequency), bool)
    for number in range(shards):
        hits = load_array(scratch / "match" / f"{number:05d}" / "hits.npy")
        frequency += np.bincount(hits, minlength=len(frequency))
        matched[hits] = True
    evidence = frequency <= stage.max_document_frequency
    save_array(scratch / "evidence.npy", evidence)
    return int((matched & ~evidence).sum())


def _write(
    stage: Decontaminate, held: Rows, scratch: str, output: str, inputs: tuple[str, ...], number: int
) -> tuple[Counts, dict[str, tuple[int, int]]]:
    """Write one shard; its books and, for each source, training documents and how many were dropped."""
    folder = Path(scratch) / "match" / f"{number:05d}"
    hits, places = load_array(folder / "hits.npy"), load_array(folder / "places.npy")
    touched = set(places[load_array(Path(scratch) / "evidence.npy")[hits]].tolist())
    sources: dict[str, list[int]] = {}
    read = 0
    with (
        open_documents(Path(output) / "kept" / shard_name(number)) as kept,
        open_dropped(Path(output) / "dropped" / shard_name(number)) as dropped,
    ):
        for place, document in enumerate(read_documents(Path(inputs[number]))):
            read += 1
            result: Document | Drop = decide(stage, held, Path(scratch), document) if place in touched else document
            if document.meta.get("split") != HELDOUT:
                tally = sources.setdefault(document.source, [0, 0])
                tally[0] += 1
                tally[1] += isinstance(result, Drop)
            if isinstance(result, Drop):
                dropped.write(Dropped(document, stage.name, result))
            else:
                kept.write(result)
    counts = Counts(read=read, kept=kept.count, dropped=dropped.count)
    return counts, {name: (tally[0], tally[1]) for name, tally in sources.items()}


def decide(stage: Decontaminate, held: Rows, scratch: Path, document: Document) -> Document | Drop:
    """What becomes of a training document that holds n-grams of the held-out side."""
    found = hash_shingles([document.text], stage.shingles(), whole_only=True).values
    index, inside = find(load_array(scratch / "ngrams.npy"), found)
    inside &= load_array(scratch / "evidence.npy")[index]
    first = np.flatnonzero(inside)
    starts, ends = word_spans(document.text)
    whole = len(starts) == len(found) + stage.size - 1  # normal form can, rarely, move the borders of words
    text = document.text
    words = text[starts[first[0]] : ends[first[0] + stage.size - 1]] if whole else ""
    owner = held.ids(load_array(scratch / "owners.npy")[index[first[:1]]])[0]
    drop = Drop("heldout_overlap", re.sub(r"\s+", " ", words) or None, stage.size, owner)
    if stage.action == "drop" or not whole:
        return drop
    cut = np.zeros(len(starts), bool)
    for offset in range(stage.size):
        cut[first + offset] = True
    if len(starts) - cut.sum() < stage.min_words_left:
        return drop
    pieces, position = [], 0
    edges = np.flatnonzero(np.diff(np.concatenate(([False], cut, [False])).astype(np.int8)))
    for low, high in zip(edges[::2], edges[1::2]):
        pieces.append(text[position : starts[low]])
        position = starts[high] if high < len(starts) else ends[-1]
    cleaned = "".join([*pieces, text[position:]])
    return document.with_text(cleaned).with_meta(decontaminated_words=int(cut.sum()))

"""augmentation.html of a dataset: `python -m data.augment.report --dataset DIR`.

One file that works offline. For each technique: how many copies were tried and kept, and why the others were not; how
similar copies are to their parents and how long; the distinct word n-grams that they add; ten pairs side by side with
the changes marked. Pairs are chosen by the hash of the copy's id; personal data is replaced before anything is shown.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from html import escape
from pathlib import Path

import xxhash

from data.augment.attempts import STEP
from data.augment.plan import LINEAGE, tokens_of
from data.augment.technique import words
from data.charts import bar_chart, histogram, page, table
from data.clean.pii import redact
from data.document import Document
from data.manifest import read_manifest
from data.tables import atomic_path, read_documents, read_dropped

EXAMPLES = 10
SAMPLE = 2000  # pairs of a technique that n-grams are counted over
EXCERPT = 1500  # characters of an example
NGRAMS = (1, 2, 3)


@dataclass
class Technique:
    """What is known of one technique: all bounded but the numbers of the histograms."""

    kept: int = 0
    tokens: int = 0
    models: set[str] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    similarity: list[float] = field(default_factory=list)
    length_ratio: list[float] = field(default_factory=list)
    pairs: list[tuple[int, str, str, str]] = field(default_factory=list)  # -hash, id, parent's text, copy's text

    @property
    def tried(self) -> int:
        """Copies kept and rejected."""
        return self.kept + sum(self.reasons.values())

    def add(self, parent: Document | None, copy: Document) -> None:
        """A copy that was kept. parent: None where a later stage dropped it."""
        self.kept += 1
        self.tokens += tokens_of(copy.text)
        self.sources[copy.source] += 1
        self.similarity.append(copy.scores["similarity"])
        self.length_ratio.append(copy.scores["length_ratio"])
        if parent is None:
            return
        item = (-xxhash.xxh3_64_intdigest(copy.id.encode()), copy.id, parent.text, copy.text)
        if len(self.pairs) < SAMPLE:
            heapq.heappush(self.pairs, item)
        elif item > self.pairs[0]:
            heapq.heapreplace(self.pairs, item)

    def ngrams(self) -> list[tuple[int, int, int, float]]:
        """(n, distinct n-grams of the parents, new ones in the copies, the share gained) of the sampled pairs."""
        rows = []
        for n in NGRAMS:
            before: set[tuple[str, ...]] = set()
            after: set[tuple[str, ...]] = set()
            for _, _, parent, copy in self.pairs:
                for text, found in ((parent, before), (copy, after)):
                    listed = words(text)
                    found.update(zip(*(listed[i:] for i in range(n))))
            gained = len(after - before)
            rows.append((n, len(before), gained, gained / max(1, len(before))))
        return rows


def gather(dataset: Path) -> dict[str, Technique]:
    """One pass over a whole dataset; techniques by name."""
    found: dict[str, Technique] = defaultdict(Technique)
    for path in sorted((dataset / "documents").glob("*.parquet")):
        parent = None
        for document in read_documents(path):
            lineage = document.meta.get(LINEAGE)
            if lineage is None:
                parent = document
            else:
                technique = found[lineage["technique"]]
                technique.models.add(str(lineage["model"]))
                technique.add(parent if parent is not None and parent.id == lineage["parent"] else None, document)
    for path in sorted((dataset / "dropped").glob("*.parquet")):
        for row in read_dropped(path):
            lineage = row.document.meta.get(LINEAGE)
            if lineage is not None:
                technique = found[lineage["technique"]]
                technique.models.add(str(lineage["model"]))
                reason = row.drop.reason if row.step == STEP else f"{row.step}: {row.drop.reason}"
                technique.reasons[reason] += 1
    return dict(sorted(found.items()))


def write_report(dataset: Path) -> Path:
    """Make DATASET/augmentation.html; the path. ValueError where no whole dataset with copies is."""
    read_manifest(dataset)
    found = gather(dataset)
    if not found:
        raise ValueError(f"{dataset}: no document was augmented; put Augment(...) into data.stages and build again")
    sections = [("All techniques", overview(found))]
    sections += [(name, of_technique(technique)) for name, technique in found.items()]
    path = dataset / "augmentation.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page(f"Augmentation of {dataset.name}", sections), encoding="utf-8", errors="replace")
    return path


def overview(found: dict[str, Technique]) -> str:
    """Kept shares side by side."""
    rows = [
        (name, ", ".join(sorted(one.models)), one.tried, one.kept, one.kept / max(1, one.tried), one.tokens)
        for name, one in found.items()
    ]
    chart = bar_chart(
        list(found), [round(100 * one.kept / max(1, one.tried), 1) for one in found.values()], title="Kept", x_label="%"
    )
    return chart + table(rows, ("technique", "model", "copies tried", "kept", "kept share", "tokens added, about"))


def of_technique(one: Technique) -> str:
    """The books, distributions, n-grams and examples of one technique."""
    reasons = table([(reason, count, count / one.tried) for reason, count in one.reasons.most_common()], _REASONS)
    parts = [
        f"<p>{one.kept:,} of {one.tried:,} copies kept.</p>",
        reasons if one.reasons else "<p>No copy was rejected.</p>",
        histogram(one.similarity, title="Similarity of kept copies to their parent", x_label="similarity, 0 to 1"),
        histogram(one.length_ratio, title="Length of kept copies", x_label="characters over those of the parent"),
        f"<p>Distinct word n-grams that {len(one.pairs):,} kept copies add to those of their parents:</p>",
        table(one.ngrams(), ("n", "of the parents", "new", "share gained")),
        "<h3>Side by side</h3>",
        *(side_by_side(name, parent, copy) for _, name, parent, copy in sorted(one.pairs, reverse=True)[:EXAMPLES]),
    ]
    return "".join(parts)


_REASONS = ("reason of rejection", "copies", "share")


def side_by_side(name: str, parent: str, copy: str) -> str:
    """A parent and its copy in two columns, what differs marked in both."""
    before, after = _pieces(redact(parent)), _pieces(redact(copy))
    left, right = [], []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        old, new = escape("".join(before[a:b])), escape("".join(after[c:d]))
        left.append(old if kind == "equal" or not old else f"<mark>{old}</mark>")
        right.append(new if kind == "equal" or not new else f"<mark>{new}</mark>")
    cells = "".join(f'<td style="width: 50%"><pre>{"".join(side)}</pre></td>' for side in (left, right))
    return (
        f'<details open><summary>{escape(name)}</summary><table style="width: 100%"><tr>{cells}</tr></table></details>'
    )


def _pieces(text: str) -> list[str]:
    """Words with the space behind them, of the start of a text."""
    shown = text[:EXCERPT] + (" …" if len(text) > EXCERPT else "")
    out: list[str] = []
    for part in shown.splitlines(keepends=True):
        listed = part.split(" ")
        out += [f"{word} " for word in listed[:-1]] + listed[-1:]
    return [piece for piece in out if piece]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m data.augment.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True)
    try:
        print(write_report(parser.parse_args(argv).dataset))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

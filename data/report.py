"""report.html of a dataset: `python -m data.report --dataset DIR`.

One file that works offline: what came in and what is left by source and step, what each filter removes and what only
it removes, retention and cluster sizes of dedup, histograms of scores with their thresholds, languages, lengths, and
ten examples of each reason with the offending part marked. Examples are chosen by the hash of the document's id;
personal data in them is replaced.
"""

from __future__ import annotations

import argparse
import heapq
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import xxhash

from data.charts import bar_chart, histogram, page, table
from data.clean.marks import offending
from data.clean.pii import redact
from data.dedup.report import duplicates
from data.document import Document, Dropped
from data.manifest import read_manifest
from data.store import at_hand, find_dataset
from data.tables import atomic_path, read_documents, read_dropped

EXAMPLES = 10  # of each step and reason
EXCERPT = 700  # characters of an example
MOST_VALUES = 20_000  # numbers a histogram is drawn from
STAGES_WITH_ALL_VERDICTS = ("clean", "score", "decide")


class Gathered:
    """What one pass over the documents of a dataset leaves: everything bounded, whatever the number of documents."""

    def __init__(self) -> None:
        self.only: Counter[tuple[str, str]] = Counter()
        self.examples: dict[tuple[str, str], list[tuple[int, str, Dropped]]] = defaultdict(list)
        self.changed: list[tuple[int, str, Document]] = []
        self.values: dict[str, list[float]] = defaultdict(list)
        self.thresholds: dict[str, float] = {}
        self.languages: Counter[str] = Counter()
        self.lengths: list[float] = []

    def add_scores(self, document: Document) -> None:
        """Numbers for the histograms."""
        for name, value in document.scores.items():
            if name == "measured":
                for rule, (measured, threshold) in value.items():
                    self._add(rule, measured)
                    self.thresholds[rule] = threshold
            elif isinstance(value, int | float) and not isinstance(value, bool):
                self._add(name, float(value))
        if "language" in document.scores:
            self.languages[str(document.scores["language"])] += 1

    def _add(self, name: str, value: float) -> None:
        if len(self.values[name]) < MOST_VALUES and math.isfinite(value):
            self.values[name].append(value)

    def add_kept(self, document: Document) -> None:
        """Take in a kept document."""
        self.add_scores(document)
        if len(self.lengths) < MOST_VALUES and document.text:
            self.lengths.append(math.log10(len(document.text)))
        if document.meta.get("changed") or document.meta.get("pii"):
            _keep_smallest(self.changed, _order(document.id), document.id, document)

    def add_dropped(self, row: Dropped) -> None:
        """Take in a drop."""
        self.add_scores(row.document)
        key = row.step, row.drop.reason
        if row.document.scores.get("also_dropped_by") == []:
            self.only[key] += 1
        _keep_smallest(self.examples[key], _order(row.document.id), row.document.id, row)


def _order(identifier: str) -> int:
    return -xxhash.xxh3_64_intdigest(identifier.encode("utf-8", "replace"))


def _keep_smallest(heap: list[tuple[int, str, Any]], order: int, identifier: str, item: Any) -> None:
    if len(heap) < EXAMPLES:
        heapq.heappush(heap, (order, identifier, item))
    elif order > heap[0][0]:
        heapq.heapreplace(heap, (order, identifier, item))


def gather(dataset: Path) -> Gathered:
    """One pass over the kept documents and the drops of a whole dataset."""
    gathered = Gathered()
    for path in sorted((dataset / "documents").glob("*.parquet")):
        for document in read_documents(path):
            gathered.add_kept(document)
    for path in sorted((dataset / "dropped").glob("*.parquet")):
        for row in read_dropped(path):
            gathered.add_dropped(row)
    return gathered


def write_report(dataset: Path) -> Path:
    """Make DATASET/report.html; the path. ValueError where there is no whole dataset."""
    manifest = read_manifest(dataset)
    at_hand(dataset, "documents", "dropped", "stages")
    gathered = gather(dataset)
    sections = [
        ("Funnel", funnel(manifest)),
        ("What each filter removes", reasons(manifest, gathered)),
        ("Duplicates", duplicates(dataset, manifest) or "<p>No dedup stage ran.</p>"),
        ("Scores", scores(gathered)),
        ("Languages and lengths", languages_and_lengths(gathered)),
        ("Before and after", before_and_after(dataset, manifest, gathered)),
        ("Examples of each reason", examples(gathered)),
    ]
    path = dataset / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page(f"Dataset {dataset.name}", sections), encoding="utf-8", errors="replace")
    return path


def funnel(manifest: dict[str, Any]) -> str:
    """Documents left after each stage, in all and by source."""
    total: dict[str, dict[str, int]] = {}
    order: list[str] = []
    left: Counter[str] = Counter()
    for stage in manifest["stages"]:
        for source, counts in stage["sources"].items():
            left[source] = counts["kept"]
        order.append(stage["name"])
        total[stage["name"]] = dict(left)
    sources = sorted(left)
    labels = [name for name in order if not name.startswith("read-")]
    labels = ["read", *labels]
    last_read = [name for name in order if name.startswith("read-")][-1:] or order[:1]
    per_stage = [total[last_read[0]], *(total[name] for name in labels[1:])]
    chart = bar_chart(
        labels, [sum(counts.values()) for counts in per_stage], title="Documents left", x_label="documents"
    )
    charts = [chart]
    if len(sources) > 1:
        charts += [
            bar_chart(labels, [counts.get(s, 0) for counts in per_stage], title=f"Source {s}", x_label="documents")
            for s in sources[:20]
        ]
    rows = [
        (stage["name"], source, *(counts[name] for name in ("read", "created", "kept", "dropped", "kept_bytes")))
        for stage in manifest["stages"]
        for source, counts in stage["sources"].items()
    ]
    header = ("step", "source", "read", "created", "kept", "dropped", "bytes kept")
    return f'<div class="funnel">{"".join(charts)}</div>{table(rows, header)}'


def reasons(manifest: dict[str, Any], gathered: Gathered) -> str:
    """Every reason with its documents and bytes, and how many documents nothing else would have removed."""
    rows: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    asked_all = set()
    for stage in manifest["stages"]:
        for reason in stage["reasons"]:
            counts = rows[reason["step"], reason["reason"], reason["source"]]
            counts[0] += reason["documents"]
            counts[1] += reason["bytes"]
            if stage["name"] in STAGES_WITH_ALL_VERDICTS:
                asked_all.add((reason["step"], reason["reason"]))
    listed = [
        (step, reason, source, count, size, gathered.only[step, reason] if (step, reason) in asked_all else "n/a")
        for (step, reason, source), (count, size) in sorted(rows.items(), key=lambda item: -item[1][0])
    ]
    note = (
        '<p class="muted">“Only this” counts documents, of all sources, that no other step of the same stage would '
        "have dropped; steps outside the cleaning stages do not ask that question.</p>"
    )
    return note + table(listed, ("step", "reason", "source", "documents", "bytes", "only this"))


def scores(gathered: Gathered) -> str:
    """A histogram of each score and of each rule's number, the threshold drawn in."""
    charts = [
        histogram(values, title=name, x_label="value", threshold=gathered.thresholds.get(name))
        for name, values in sorted(gathered.values.items())
    ]
    note = (
        '<p class="muted">Scores of all documents; numbers of single rules (step/reason) of one document in sixteen, '
        "kept and dropped, as the step saw them.</p>"
    )
    return note + f'<div class="histograms">{"".join(charts) or "<p>No scores.</p>"}</div>'


def languages_and_lengths(gathered: Gathered) -> str:
    """How many kept documents each language has, and how long they are."""
    parts = []
    if gathered.languages:
        most = gathered.languages.most_common(30)
        parts.append(bar_chart([n for n, _ in most], [c for _, c in most], title="Languages", x_label="documents"))
    if gathered.lengths:
        parts.append(histogram(gathered.lengths, title="Length of kept documents", x_label="log10 of characters"))
    return "".join(parts) or "<p>No documents were kept.</p>"


def before_and_after(dataset: Path, manifest: dict[str, Any], gathered: Gathered) -> str:
    """Texts that steps changed: as they were read, and as they are kept."""
    after = {identifier: document for _, identifier, document in sorted(gathered.changed, reverse=True)}
    before: dict[str, Document] = {}
    for stage in manifest["stages"]:
        if not stage["name"].startswith("read-") or len(before) == len(after):
            continue
        for path in sorted((dataset / stage["folder"] / "kept").glob("*.parquet")):
            before.update((d.id, d) for d in read_documents(path) if d.id in after)
    parts = []
    for identifier, document in after.items():
        counts = {**document.meta.get("changed", {})}
        if document.meta.get("pii"):
            counts["personal_data"] = dict(Counter(kind for kind, _, _ in document.meta["pii"]))
        spans = [(start, end) for _, start, end in document.meta.get("pii", [])]
        old = before.get(identifier)
        shown = _excerpt(redact(old.text), []) if old else "<pre>not read from a source</pre>"
        parts.append(
            f"<details><summary>{escape(identifier)}: {escape(str(counts))}</summary>"
            f"<p>before</p>{shown}<p>after</p>{_excerpt(document.text, spans)}</details>"
        )
    return "".join(parts) or "<p>No step changed a text.</p>"


def examples(gathered: Gathered) -> str:
    """Ten documents of each reason, the offending part marked."""
    parts = []
    for (step, reason), heap in sorted(gathered.examples.items()):
        items = []
        for _, _, row in sorted(heap, reverse=True):
            drop = row.drop
            asked = "" if drop.value is None else f"{drop.value} against {drop.threshold}"
            partner = f" of {drop.partner}" if drop.partner else ""
            items.append(
                f"<p><b>{escape(row.document.id)}</b> {escape(asked)}{escape(partner)}</p>"
                + _excerpt(row.document.text, offending(row.document.text, drop))
            )
        title = f"{escape(step)}: {escape(reason)} ({len(items)})"
        parts.append(f'<details class="reason"><summary>{title}</summary>{"".join(items)}</details>')
    return "".join(parts) or "<p>Nothing was dropped.</p>"


def _excerpt(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text around the first span, spans marked."""
    start = max(0, spans[0][0] - EXCERPT // 3) if spans else 0
    end = start + EXCERPT
    parts = ["… " if start else ""]
    place = start
    for low, high in spans:
        if low >= end:
            break
        parts += (escape(text[place:low]), "<mark>", escape(text[low : min(high, end)]), "</mark>")
        place = min(high, end)
    parts += (escape(text[place:end]), " …" if len(text) > end else "")
    return f"<pre>{''.join(parts)}</pre>"


def kept_documents(dataset: Path) -> Iterator[Document]:
    """The documents of a dataset in order."""
    for path in sorted((dataset / "documents").glob("*.parquet")):
        yield from read_documents(path)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m data.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", required=True, help="its folder, or the URL where it is kept")
    try:
        print(write_report(find_dataset(parser.parse_args(argv).dataset)))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

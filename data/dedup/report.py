"""What the dedup stages of a dataset say of themselves, for its report: retention by source, cluster sizes, the rest.

Each dedup stage leaves `dedup.json` in its folder: `sources` {name: [documents, removed]}, and, as the stage has them,
`clusters` {size: number of clusters}, `most_frequent` lines, and single numbers such as the bands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from data.charts import bar_chart, table

SHOWN_LINES = 20
SHOWN_CHARACTERS = 200  # of a repeated line


def duplicates(dataset: Path, manifest: Mapping[str, Any]) -> str:
    """The section of report.html, "" for a dataset that was never deduplicated."""
    parts = []
    for stage in manifest["stages"]:
        path = dataset / stage["folder"] / "dedup.json"
        if path.exists():
            parts.append(f"<h3>{escape(stage['name'])}</h3>" + stage_section(json.loads(path.read_text("utf-8"))))
    return "".join(parts)


def stage_section(facts: Mapping[str, Any]) -> str:
    """Tables and a chart of one stage's dedup.json."""
    rows = [
        (source, total, removed, f"{1 - removed / total:.2%}" if total else "n/a")
        for source, (total, removed) in sorted(facts["sources"].items())
    ]
    parts = [table(rows, ("source", "read", "removed", "retention"))]
    numbers = [(name.replace("_", " "), value) for name, value in facts.items() if isinstance(value, int | float)]
    if numbers:
        parts.append(table(numbers, ("", "")))
    clusters = facts.get("clusters")
    if clusters:
        sizes = sorted(clusters, key=lambda label: int(label.split("-")[0]))
        counts = [clusters[size] for size in sizes]
        title = "Clusters by size (one kept, the others removed)"
        parts.append(bar_chart(sizes, counts, title=title, x_label="clusters"))
    lines = [
        (line["documents"], line["text"][:SHOWN_CHARACTERS]) for line in facts.get("most_frequent", ())[:SHOWN_LINES]
    ]
    if lines:
        parts.append(table(lines, ("documents", "repeated text")))
    return "".join(parts)

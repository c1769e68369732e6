"""Charts and pages for reports: matplotlib figures as inline SVG, tables as HTML, one offline file.

Every function returns a string. `page` puts them together; nothing in it refers to another file or host. The same
values give the same bytes: the SVG carries no date, and the identifiers in it come from a fixed salt.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small files, and the words can be searched
    "svg.hashsalt": "sluice",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=["#2a6f97", "#d1495b", "#66a182", "#edae49", "#7d5ba6", "#5c677d"]),
}
_WIDTH = 6.4  # inches: two charts side by side on a laptop screen
_MAX_POINTS = 2000  # a longer line is thinned: no screen shows more
_PAGE_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 1180px; margin: 1.5rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .3rem }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #d7dee6 }
table { border-collapse: collapse; margin: .6rem 0; font-size: 13px } th { background: #f1f4f7; text-align: left }
td, th { border: 1px solid #d7dee6; padding: .2rem .5rem; vertical-align: top }
td.number { text-align: right; white-space: nowrap }
svg { max-width: 100%; height: auto }
figure { display: inline-block; width: calc(50% - 1.2rem); min-width: 20rem; margin: .4rem; vertical-align: top }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f7f9fb; padding: .5rem; margin: .3rem 0 }
pre { font-size: 12px } mark { background: #ffd9a0 } summary { cursor: pointer }
nav a { margin-right: 1rem } .muted { color: #66727f }
"""


def _svg(draw: Callable[[Axes], None], *, title: str, x_label: str, y_label: str, height: float) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(_plain(title))
        axes.set_xlabel(_plain(x_label))
        axes.set_ylabel(_plain(y_label))
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return f"<figure>{svg[svg.index('<svg') :].strip()}</figure>"


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula, and that an SVG can hold."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")


def _finite(values: Iterable[Any]) -> np.ndarray:
    array = np.asarray(list(values), dtype=np.float64)
    return array[np.isfinite(array)]


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
) -> str:
    """Lines over a shared x axis as inline SVG; series: name -> (x values, y values).

    Points that are no finite number are left out. Raises ValueError where a series has unequal lengths.
    """

    def draw(axes: Axes) -> None:
        for name, (xs, ys) in series.items():
            x, y = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
            if x.shape != y.shape:
                raise ValueError(f"line_chart: series {name!r} has {x.size} x values and {y.size} y values")
            good = np.isfinite(x) & np.isfinite(y) & ((y > 0) if log_y else True)
            x, y = x[good], y[good]
            stride = max(1, math.ceil(x.size / _MAX_POINTS))
            axes.plot(x[::stride], y[::stride], label=_plain(name), linewidth=1.4, marker="o" if x.size == 1 else None)
        if log_y:
            axes.set_yscale("log")
        if len(series) > 1:
            axes.legend(frameon=False)
        axes.grid(alpha=0.25)

    return _svg(draw, title=title, x_label=x_label, y_label=y_label, height=3.2)


def histogram(
    values: Iterable[float],
    *,
    title: str,
    x_label: str,
    threshold: float | Sequence[float] | None = None,
    bins: int = 40,
) -> str:
    """How `values` are spread, as inline SVG, each threshold drawn as a dashed line."""
    numbers = _finite(values)
    counts, edges = np.histogram(numbers, bins=bins) if numbers.size else (np.zeros(1), np.array([0.0, 1.0]))
    return binned_histogram(counts, edges, title=title, x_label=x_label, threshold=threshold)


def binned_histogram(
    counts: Sequence[float] | np.ndarray,
    edges: Sequence[float] | np.ndarray,
    *,
    title: str,
    x_label: str,
    threshold: float | Sequence[float] | None = None,
) -> str:
    """A histogram from ready counts [n] and edges [n + 1]."""
    limits = [threshold] if isinstance(threshold, int | float) else list(threshold or ())

    def draw(axes: Axes) -> None:
        axes.stairs(np.asarray(counts), np.asarray(edges), fill=True, alpha=0.75)
        for limit in limits:
            axes.axvline(limit, color="#d1495b", linestyle="--", linewidth=1.4, label=f"threshold {limit:g}")
        if limits:
            axes.legend(frameon=False)

    return _svg(draw, title=title, x_label=x_label, y_label="documents", height=2.6)


def bar_chart(labels: Sequence[str], values: Sequence[float], *, title: str, x_label: str) -> str:
    """Horizontal bars, first label on top, each with its value written at its end."""
    if len(labels) != len(values):
        raise ValueError(f"bar_chart: {len(labels)} labels and {len(values)} values")

    def draw(axes: Axes) -> None:
        names = [_plain(label if len(label) <= 40 else label[:39] + "…") for label in labels]
        bars = axes.barh(range(len(names)), list(values), height=0.7)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.bar_label(bars, labels=[f"{value:,.10g}" for value in values], padding=3, fontsize=8)
        axes.margins(x=0.14)

    return _svg(draw, title=title, x_label=x_label, y_label="", height=max(1.4, 0.8 + 0.27 * len(labels)))


def grouped_bar_chart(labels: Sequence[str], series: Mapping[str, Sequence[float]], *, title: str, x_label: str) -> str:
    """Horizontal bars, one of each series beside another for every label, first label on top."""
    if any(len(values) != len(labels) for values in series.values()):
        raise ValueError(f"grouped_bar_chart: {len(labels)} labels and {[len(v) for v in series.values()]} values")

    def draw(axes: Axes) -> None:
        width = 0.8 / max(1, len(series))
        for place, (name, values) in enumerate(series.items()):
            offset = (place - (len(series) - 1) / 2) * width
            axes.barh(np.arange(len(labels)) + offset, list(values), height=width, label=_plain(name))
        axes.set_yticks(
            range(len(labels)), [_plain(label if len(label) <= 40 else label[:39] + "…") for label in labels]
        )
        axes.invert_yaxis()
        axes.legend(frameon=False)

    height = max(1.6, 0.8 + (0.1 + 0.12 * len(series)) * len(labels))
    return _svg(draw, title=title, x_label=x_label, y_label="", height=height)


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """An HTML table; numbers are right-aligned with thousands separated, all else is escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{escape(str(value))}</td>"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f'<td class="number">{shown}</td>'


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """One whole HTML file; sections are (heading, HTML). No script, no request: it works from a file, offline."""
    parts = list(sections)
    links = "".join(f'<a href="#section-{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(parts))
    body = "".join(
        f'<section id="section-{i}"><h2>{escape(heading)}</h2>{html}</section>'
        for i, (heading, html) in enumerate(parts)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_PAGE_STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1><nav>{links}</nav>{body}</body></html>\n"
    )

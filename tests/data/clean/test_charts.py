"""Charts hold what they were given, as text in an inline SVG, and are the same each time."""

from __future__ import annotations

import re

import numpy as np
import pytest

from data.charts import bar_chart, histogram, line_chart, page, table


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def test_charts_are_inline_svg_with_their_words() -> None:
    line = line_chart({"loss": ([1, 2, 3], [3.0, 2.0, float("nan")])}, title="Loss $x$", x_label="step", y_label="nats")
    assert line.startswith("<figure><svg")
    assert {"Loss $x$", "step", "nats"} <= set(texts(line))
    bars = bar_chart(["words", "lines"], [1234, 5], title="Left", x_label="documents")
    assert {"words", "lines", "1,234", "5"} <= set(texts(bars))
    assert "threshold 0.5" in histogram(np.linspace(0, 1, 50), title="t", x_label="x", threshold=0.5)
    assert line == line_chart({"loss": ([1, 2, 3], [3, 2, np.nan])}, title="Loss $x$", x_label="step", y_label="nats")


def test_nothing_is_drawn_too() -> None:
    assert "<svg" in histogram([], title="t", x_label="x")
    assert "<svg" in bar_chart([], [], title="t", x_label="x")
    assert "<svg" in line_chart({}, title="t", x_label="x", y_label="y", log_y=True)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 x values and 1 y values"):
        line_chart({"a": ([1, 2], [1])}, title="t", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="1 labels and 2 values"):
        bar_chart(["a"], [1, 2], title="t", x_label="x")


def test_tables_and_pages_escape_what_they_show() -> None:
    assert table([["<b>", 1234, 0.5, None]], ["a&b", "n", "x", "z"]) == (
        "<table><thead><tr><th>a&amp;b</th><th>n</th><th>x</th><th>z</th></tr></thead><tbody><tr><td>&lt;b&gt;</td>"
        '<td class="number">1,234</td><td class="number">0.5</td><td></td></tr></tbody></table>'
    )
    html = page("<title>", [("One & two", "<p>x</p>")])
    assert "<title>&lt;title&gt;</title>" in html
    assert '<a href="#section-0">One &amp; two</a>' in html

"""Steps, recipes and the runner: how one document is cleaned.

A step is a frozen dataclass that is called with a document and its features and answers with the document (perhaps
with another text or more scores) or with a `Drop`. It holds its thresholds as fields and does not know of files, so a
recipe, a tuple of steps, is a value that a config can hold, compare and print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from data.document import Document, Drop, Dropped
from data.features import Features

VERSION = 1
Phase = Literal["clean", "score", "decide"]


class Step(Protocol):
    """One thing done to a document.

    name: what reports and `Dropped.step` call it.
    phase: "clean" looks at the text, and may change it; "score" adds to `document.scores`; "decide" reads only scores.
        `data.clean.stage.cleaning` puts the three into stages of their own, so that another threshold in a "decide"
        step computes no score again.
    """

    @property
    def name(self) -> str: ...

    @property
    def phase(self) -> Phase: ...

    def __call__(self, document: Document, features: Features) -> Document | Drop: ...


class Rule(NamedTuple):
    """One number of a text against one limit; a filter is a tuple of these, asked in order.

    at_least: whether the number must reach the threshold; otherwise it must not pass it.
    """

    reason: str
    measure: Callable[[Features], float]
    threshold: float
    at_least: bool


def at_least(reason: str, measure: Callable[[Features], float], threshold: float) -> Rule:
    """Drop where measure(features) < threshold."""
    return Rule(reason, measure, threshold, True)


def at_most(reason: str, measure: Callable[[Features], float], threshold: float) -> Rule:
    """Drop where measure(features) > threshold."""
    return Rule(reason, measure, threshold, False)


def judge(rules: Sequence[Rule], features: Features) -> Drop | None:
    """The drop of the first broken rule; later rules are not computed."""
    for reason, measure, threshold, is_least in rules:
        value = measure(features)
        if (value < threshold) if is_least else (value > threshold):
            return Drop(reason, round(value, 6), threshold)
    return None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Named steps, run in order until one drops the document."""

    name: str
    steps: tuple[Any, ...]  # of Step; a Protocol cannot be checked when a config is overridden

    def only(self, phase: Phase) -> Recipe:
        """The same recipe with the steps of one phase."""
        return Recipe(name=self.name, steps=tuple(step for step in self.steps if step.phase == phase))


Measures = dict[str, tuple[float, list[float]]]  # "step/reason" -> (threshold, one value a measured document)


def clean_document(recipe: Recipe, document: Document, measures: Measures | None = None) -> Document | Dropped:
    """The document after every step, or where and why the first step dropped it.

    measures: where given, the value of every rule of every filter is added to it (for histograms).

    A dropped document is the text as that step saw it. The remaining steps are asked too: those that would also have
    dropped it are listed in scores["also_dropped_by"] as [step, reason], so that a report can tell which documents
    only one filter removes.
    """
    dropped: Dropped | None = None
    also: list[list[str]] = []
    features = Features(document.text)
    for step in recipe.steps:
        if measures is not None:
            for rule in getattr(step, "rules", ()):
                values = measures.setdefault(f"{step.name}/{rule.reason}", (rule.threshold, []))[1]
                values.append(float(rule.measure(features)))
        result = _run(step, document, features)
        if isinstance(result, Drop):
            if dropped is None:
                dropped = Dropped(document, step.name, result)
            else:
                also.append([step.name, result.reason])
        else:
            if result.text is not document.text:
                features = Features(result.text)
            document = result
    if dropped is None:
        return document
    return Dropped(dropped.document.with_scores(also_dropped_by=also), dropped.step, dropped.drop)


def _run(step: Step, document: Document, features: Features) -> Document | Drop:
    try:
        return step(document, features)
    except TimeoutError:  # of a regular expression that was given a limit: the text is a trap, not an error of ours
        return Drop("took_too_long", len(document.text), None)


def note_changes(document: Document, step: str, changes: dict[str, int], text: str | None = None) -> Document:
    """The document with another text, what the step changed counted in meta["changed"][step]."""
    counted = {what: count for what, count in changes.items() if count}
    if not counted:
        return document if text is None else document.with_text(text)
    meta = {**document.meta, "changed": {**document.meta.get("changed", {}), step: counted}}
    return replace(document, meta=meta, text=document.text if text is None else text)


T = TypeVar("T")


def ratio(part: float, whole: float) -> float:
    """part / whole, and 0 where there is no whole."""
    return part / whole if whole else 0.0


def pairs(values: Iterable[tuple[str, T]], what: str) -> dict[str, T]:
    """A dict from (name, value) pairs; a name given twice is refused."""
    out: dict[str, T] = {}
    for name, value in values:
        if name in out:
            raise ValueError(f"{what}: {name!r} is given twice; give each name once")
        out[name] = value
    return out

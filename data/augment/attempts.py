"""From a shard's documents to attempts: each a copy that passed the gates, or a rejection with its reason.

An attempt is one row of a file of dropped documents, with an empty reason where it passed: so nothing is lost, whatever
the next step decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from data.augment.gates import Gates, Traits
from data.augment.plan import LINEAGE, Dose
from data.augment.technique import Request, Rewriter
from data.document import Document, Drop, Dropped

VERSION = 2
STEP = "augment"
PASSED = ""
TURNS = "num_turns"  # the meta key that dialogue sources set
_OF_THE_TEXT = ("pii", "changed", "messages")  # meta values that say something of the parent's very text


@dataclass
class Family:
    """A document that gets copies: its attempts' seeds, and the copies that earlier stages made of it.

    refused: why none of its attempts is made.
    """

    parent: Document
    seeds: list[tuple[int, int]]
    relatives: list[Document] = field(default_factory=list)
    refused: Drop | None = None


def families(documents: Iterator[Document], dose: Dose, limit: int) -> Iterator[Family]:
    """The documents to augment, in order. limit: seeds from here on are beyond the budget."""
    waiting: Family | None = None
    for document in documents:
        if waiting is not None and document.meta.get(LINEAGE, {}).get("parent") == waiting.parent.id:
            waiting.relatives.append(document)
            continue
        if waiting is not None:
            yield waiting
            waiting = None
        seeds = [(copy, dose.seed_of(document, copy)) for copy in range(dose.copies(document))]
        seeds = [(copy, seed) for copy, seed in seeds if seed < limit]
        if seeds:
            waiting = Family(document, seeds)
    if waiting is not None:
        yield waiting


Drawn = Callable[[int], Mapping[str, str]]


def nothing_drawn(seed: int) -> Mapping[str, str]:
    """Of a technique whose settings leave no choice."""
    return {}


def attempt(
    group: Sequence[Family],
    rewriter: Rewriter,
    gates: Gates,
    *,
    technique: str,
    model: str,
    longest: int,
    drawn: Drawn = nothing_drawn,
) -> list[Dropped]:
    """Every attempt of some families, in order. longest: characters of a text that is handed to the technique.

    drawn: what a seed picks among the technique's settings, for the lineage.
    """
    traits = [Traits(family.parent.text, family.parent.scores.get("language")) for family in group]
    asked: list[tuple[int, Request]] = []
    refused = [_refusal(family, longest) for family in group]
    for place, (family, of_parent) in enumerate(zip(group, traits)):
        if refused[place] is None:
            text, dialogue = family.parent.text, TURNS in family.parent.meta
            asked += [(place, Request(text, seed, of_parent.language, dialogue)) for _, seed in family.seeds]
    answers = iter(rewriter([request for _, request in asked]))
    out: list[Dropped] = []
    for family, of_parent, refusal in zip(group, traits, refused):
        siblings = [Traits(relative.text) for relative in family.relatives]
        for copy, seed in family.seeds:
            lineage = {"parent": family.parent.id, "technique": technique, "model": model, "seed": seed, "copy": copy}
            lineage |= drawn(seed)
            result = next(answers) if refusal is None else refusal
            out.append(_judged(family.parent, of_parent, siblings, result, gates, lineage))
    return out


def _refusal(family: Family, longest: int) -> Drop | None:
    """Why the technique is not asked for a family's copies."""
    if family.refused is not None:
        return family.refused
    if not family.parent.text.strip():
        return Drop("empty_text")
    size = len(family.parent.text)
    return Drop("too_long_to_augment", size, longest) if size > longest else None


def _judged(
    parent: Document,
    traits: Traits,
    siblings: list[Traits],
    result: str | Drop,
    gates: Gates,
    lineage: Mapping[str, object],
) -> Dropped:
    meta = {name: value for name, value in parent.meta.items() if name not in _OF_THE_TEXT}
    meta |= {LINEAGE: lineage, "group": parent.meta.get("group") or parent.id}  # what belongs together stays together
    identifier = f"{parent.id}~{lineage['technique']}.{lineage['seed']:016x}"
    scores: dict[str, float | str] = {}
    drop = result if isinstance(result, Drop) else None
    text = "" if isinstance(result, Drop) else result
    if drop is None:
        copy = Traits(text)
        verdict = gates.check(traits, copy, siblings)
        if isinstance(verdict, Drop):
            drop = verdict
        else:
            scores = {**verdict, "language": traits.language}
            siblings.append(copy)
    document = Document(id=identifier, text=text, source=parent.source, meta=meta, scores=scores)
    reason = Drop(PASSED) if drop is None else Drop(drop.reason, drop.value, drop.threshold, parent.id)
    return Dropped(document, STEP, reason)

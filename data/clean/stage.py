"""The cleaning stages: recipes run over shards.

    Clean    steps that look at the text, change it, and filter by it
    Score    steps that add numbers to `document.scores` (language, toxicity, quality)
    Decide   steps that drop by those numbers: another threshold here computes nothing again

`cleaning(recipes)` splits whole recipes into the three. Each stage keeps the number of shards and their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from data.clean.step import Measures, Phase, Recipe, clean_document, pairs
from data.document import Document, Dropped
from data.engine import Engine
from data.stage import Counts, map_documents

VERSION = 2
MEASURED = (
    16  # one document in so many, by a hash of its id, keeps the value of every rule, for the report's histograms
)
Recipes = tuple[tuple[str, Recipe], ...]

CODE_MODULES = (
    "data.clean.linear",
    "data.english",
    "data.features",
    *(
        f"data.clean.{name}"
        for name in (
            *("basic", "c4", "code", "fineweb", "gopher_quality", "gopher_repetition", "language", "perplexity", "pii"),
            *("pii_numbers", "pii_text", "refinedweb", "stage", "step", "toxicity"),
        )
    ),
)
LIBRARIES = ("ftfy", "langdetect", "numpy", "phonenumbers", "py3langid", "pyarrow", "python-stdnum", "regex", "xxhash")


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Run a recipe over every document, chosen by the document's source.

    recipes: (source name, recipe) pairs. default: for every other source; without it an unnamed source is an error.
    """

    recipes: Recipes = ()
    default: Recipe | None = None

    name: ClassVar[str] = "clean"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = CODE_MODULES
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """As `Stage.run`; ValueError where a source has no recipe."""
        return run_recipes(self, inputs, output, engine)


@dataclass(frozen=True, kw_only=True)
class Score:
    """As `Clean`, for steps that only add scores."""

    recipes: Recipes = ()
    default: Recipe | None = None

    name: ClassVar[str] = "score"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = CODE_MODULES
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """As `Stage.run`; ValueError where a source has no recipe."""
        return run_recipes(self, inputs, output, engine)


@dataclass(frozen=True, kw_only=True)
class Decide:
    """As `Clean`, for steps that drop by scores."""

    recipes: Recipes = ()
    default: Recipe | None = None

    name: ClassVar[str] = "decide"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = CODE_MODULES
    libraries: ClassVar[tuple[str, ...]] = LIBRARIES

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """As `Stage.run`; ValueError where a source has no recipe."""
        return run_recipes(self, inputs, output, engine)


def cleaning(*, recipes: Recipes = (), default: Recipe | None = None) -> tuple[Clean | Score | Decide, ...]:
    """Whole recipes as stages, so that a threshold of a deciding step enters only the last stage's key.

    A stage whose recipes hold no step at all is left out.
    """

    def part(phase: Phase) -> dict[str, Any]:
        return {
            "recipes": tuple((source, recipe.only(phase)) for source, recipe in recipes),
            "default": default and default.only(phase),
        }

    stages: tuple[Clean | Score | Decide, ...] = (
        Clean(**part("clean")),
        Score(**part("score")),
        Decide(**part("decide")),
    )
    return tuple(
        stage
        for stage in stages
        if any(recipe.steps for _, recipe in stage.recipes) or (stage.default and stage.default.steps)
    )


def run_recipes(stage: Clean | Score | Decide, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
    """The work of the three stages: one task a shard, books added up."""
    work = _Cleaner(stage.name, pairs(stage.recipes, "recipes"), stage.default)
    return map_documents(work, inputs, output, engine, label=stage.name)


@dataclass(frozen=True)
class _Cleaner:
    """What a worker does with the documents of a shard."""

    stage: str
    recipes: Mapping[str, Recipe]
    default: Recipe | None

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document | Dropped]:
        for document in documents:
            recipe = self.recipes.get(document.source, self.default)
            if recipe is None:
                known = ", ".join(sorted(self.recipes)) or "none"
                source = f"no recipe for source {document.source!r} (recipes: {known})"
                raise ValueError(f"{self.stage}: {source}; name it or give a default")
            if xxhash.xxh3_64_intdigest(document.id.encode("utf-8", "replace")) % MEASURED:
                yield clean_document(recipe, document)
            else:
                yield self._measured(recipe, document)

    def _measured(self, recipe: Recipe, document: Document) -> Document | Dropped:
        """As `clean_document`, with {step/reason: [value, threshold]} in scores["measured"]."""
        measures: Measures = {}
        result = clean_document(recipe, document, measures)
        if not measures:
            return result
        shown = {rule: [round(values[-1], 4), threshold] for rule, (threshold, values) in measures.items()}
        if isinstance(result, Dropped):
            return Dropped(_with_measures(result.document, shown), result.step, result.drop)
        return _with_measures(result, shown)


def _with_measures(document: Document, shown: dict[str, list[float]]) -> Document:
    return document.with_scores(measured={**document.scores.get("measured", {}), **shown})

"""The cleaning stages: recipes run over shards.

    Clean    steps that look at the text, change it, and filter by it
    Score    steps that add numbers to `document.scores` (language, toxicity, quality)
    Decide   steps that drop by those numbers: another threshold here computes nothing again

`cleaning(recipes)` splits whole recipes into the three. Each stage keeps the number of shards and their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import xxhash

from data.clean.step import Measures, Phase, Recipe, clean_document, pairs
from data.document import Document, Dropped
from data.engine import Engine
from data.stage import Counts
from data.tables import read_documents, write_documents, write_dropped, write_json

VERSION = 1
MEASURED_IN = 16  # one document in so many, by a hash of its id, has every rule measured for the report's histograms
Recipes = tuple[tuple[str, Recipe], ...]

CODE_MODULES = (
    "data.features",
    "data.clean.stage",
    "data.clean.step",
    "data.clean.basic",
)
LIBRARIES = ("pyarrow", "xxhash", "ftfy")


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
        return run_recipes(self.name, self.recipes, self.default, inputs, output, engine)


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
        return run_recipes(self.name, self.recipes, self.default, inputs, output, engine)


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
        return run_recipes(self.name, self.recipes, self.default, inputs, output, engine)


def cleaning(*, recipes: Recipes = (), default: Recipe | None = None) -> tuple[Clean, Score, Decide]:
    """Whole recipes as three stages, so that a threshold of a deciding step enters only the last stage's key."""

    def part(phase: Phase) -> tuple[Recipes, Recipe | None]:
        return tuple((source, recipe.only(phase)) for source, recipe in recipes), default and default.only(phase)

    clean, score, decide = part("clean"), part("score"), part("decide")
    return (
        Clean(recipes=clean[0], default=clean[1]),
        Score(recipes=score[0], default=score[1]),
        Decide(recipes=decide[0], default=decide[1]),
    )


def run_recipes(
    name: str, recipes: Recipes, default: Recipe | None, inputs: Sequence[Path], output: Path, engine: Engine
) -> Counts:
    """The work of the three stages: one task a shard, books added up."""
    for folder in ("kept", "dropped", "measures"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    work = partial(_clean_shard, stage=name, recipes=pairs(recipes, "recipes"), default=default, output=output)
    books = engine.map_shards(work, list(enumerate(inputs)), label=name)
    return sum((Counts(**each) for each in books), Counts())


def _clean_shard(
    shard: tuple[int, Path], *, stage: str, recipes: dict[str, Recipe], default: Recipe | None, output: Path
) -> dict[str, int]:
    index, path = shard
    dropped: list[Dropped] = []  # of one shard: shards are of bounded size
    measures: dict[str, Measures] = {}
    read = 0

    def kept() -> Iterator[Document]:
        nonlocal read
        for document in read_documents(path):
            read += 1
            recipe = recipes.get(document.source, default)
            if recipe is None:
                known = ", ".join(sorted(recipes)) or "none"
                raise ValueError(
                    f"{stage}: no recipe for source {document.source!r} (recipes: {known}); name it or give a default"
                )
            sampled = xxhash.xxh3_64_intdigest(document.id.encode()) % MEASURED_IN == 0
            result = clean_document(recipe, document, measures.setdefault(document.source, {}) if sampled else None)
            if isinstance(result, Dropped):
                dropped.append(result)
            else:
                yield result

    count = write_documents(output / "kept" / f"{index:05d}.parquet", kept())
    write_dropped(output / "dropped" / f"{index:05d}.parquet", dropped)
    write_json(output / "measures" / f"{index:05d}.json", measures)
    return {"read": read, "kept": count, "dropped": len(dropped)}

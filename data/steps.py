"""The steps of a build: each kind with its key, its work, and the check of its books."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from data.clean.pii import LIBRARIES as PII_LIBRARIES
from data.clean.pii import VERSION as PII_VERSION
from data.dropped import VERSION as DROPPED_VERSION
from data.dropped import collect_dropped
from data.engine import Engine
from data.folders import Step, kept_shards, read_record
from data.keys import make_key
from data.manifest import tally_stage
from data.read import VERSION as READ_VERSION
from data.read import read_source
from data.sources.source import Source
from data.stage import Counts, Stage
from data.tokenizer import load_tokenizer
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_extend import VERSION as EXTENSION_VERSION
from data.tokenizer_extend import TokenizerExtension, TokenizerSource, extend_tokenizer
from data.tokenizer_train import LIBRARIES as TOKENIZER_LIBRARIES
from data.tokenizer_train import VERSION as TOKENIZER_VERSION
from data.tokenizer_train import train_tokenizer
from data.tokens import LIBRARIES as TOKENS_LIBRARIES
from data.tokens import VERSION as TOKENS_VERSION
from data.tokens import tokenize_stage


def read_step(source: Source, shard_bytes: int) -> Step:
    """The step that reads one source."""
    key = make_key(
        "read",
        version=READ_VERSION,
        settings=[source, shard_bytes],
        inputs=[source.version, source.inputs_key()],
        libraries=source.libraries,
    )

    def run(output: Path, engine: Engine) -> dict[str, Any]:
        counts = read_source(source, output, engine, shard_bytes=shard_bytes)
        return _books(f"read {source.name}", output, counts, None, engine)

    return Step(f"read-{source.name}", key, run)


def stage_step(dataset: Path, stage: Stage, name: str, before: Sequence[Step]) -> Step:
    """The step that runs one stage over what the steps before it kept."""
    files = getattr(stage, "inputs_key", None)  # what a stage reads besides documents: an index, evaluation sets
    key = make_key(
        stage.name,
        version=stage.version,
        settings=stage,
        inputs=[*(step.key for step in before), *([files()] if files else [])],
        libraries=stage.libraries,
    )
    inputs = [dataset / step.folder for step in before]

    def run(output: Path, engine: Engine) -> dict[str, Any]:
        came_in: dict[str, int] = {}
        for folder in inputs:
            for source, books in read_record(folder)["sources"].items():
                came_in[source] = came_in.get(source, 0) + books["kept"]
        counts = stage.run(kept_shards(inputs), output, engine)
        return _books(stage.name, output, counts, came_in, engine)

    return Step(name, key, run)


def dropped_step(dataset: Path, steps: Sequence[Step]) -> Step:
    """The step that gathers what all document steps dropped."""
    key = make_key(
        "dropped",
        version=DROPPED_VERSION,
        settings=PII_VERSION,
        inputs=[[step.name, step.key] for step in steps],
        libraries=PII_LIBRARIES,
    )
    folders = [(step.name, dataset / step.folder) for step in steps]

    def run(output: Path, engine: Engine) -> dict[str, Any]:
        return {"documents": collect_dropped(folders, output, engine)}

    return Step("dropped", key, run)


def token_steps(
    dataset: Path,
    tokenizer: TokenizerConfig | TokenizerExtension | TokenizerSource,
    seed: int,
    before: Sequence[Step],
    split_languages: bool = False,
) -> list[Step]:
    """The steps that train the tokenizer and write the token shards."""
    inputs = [dataset / step.folder for step in before]
    keys = [step.key for step in before]
    ready = tokenizer.base if isinstance(tokenizer, TokenizerExtension) else tokenizer
    training_key = make_key(
        "tokenizer",
        version=EXTENSION_VERSION if isinstance(tokenizer, TokenizerExtension) else TOKENIZER_VERSION,
        settings=tokenizer,
        inputs=keys if isinstance(ready, TokenizerConfig) else [*keys, source_hash(ready)],
        libraries=TOKENIZER_LIBRARIES,
        writes_tables=False,
    )
    tokens_key = make_key(
        "tokens",
        version=TOKENS_VERSION,
        settings=[seed, "by language"] if split_languages else seed,
        inputs=[training_key, *keys],
        libraries=TOKENS_LIBRARIES,
        writes_tables=False,
    )

    def train(output: Path, engine: Engine) -> dict[str, Any]:
        if isinstance(tokenizer, TokenizerConfig):
            train_tokenizer(tokenizer, kept_shards(inputs), output)
        elif isinstance(tokenizer, TokenizerExtension):
            extend_tokenizer(tokenizer, kept_shards(inputs), output)
        else:
            tokenizer.write(output)
        trained = load_tokenizer(output)
        return {"vocab_size": trained.vocab_size, "fingerprint": trained.fingerprint}

    training = Step("tokenizer", training_key, train)

    def tokenize(output: Path, engine: Engine) -> dict[str, Any]:
        counts = tokenize_stage(
            kept_shards(inputs),
            dataset / training.folder,
            output / "tokens",
            engine,
            seed=seed,
            split_languages=split_languages,
        )
        return {
            "counts_by_split": {
                split: {source: asdict(books) for source, books in by_source.items()}
                for split, by_source in counts.items()
            }
        }

    return [training, Step("tokens", tokens_key, tokenize)]


def source_hash(source: TokenizerSource) -> str:
    """A hash of the files that a ready tokenizer writes: another tokenizer at the same location is another dataset."""
    digest = xxhash.xxh3_128()
    with tempfile.TemporaryDirectory() as folder_name:
        source.write(Path(folder_name))
        for path in sorted(Path(folder_name).iterdir()):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _books(name: str, output: Path, counts: Counts, before: Mapping[str, int] | None, engine: Engine) -> dict[str, Any]:
    """The record of a document stage, after checking its own counts against its input and against its files."""
    tally = tally_stage(output, before, engine)
    for kind in ("kept", "dropped"):
        found = sum(books[kind] for books in tally["sources"].values())
        if found != getattr(counts, kind):
            raise ValueError(f"{name}: says {getattr(counts, kind):,} {kind}, but its shards hold {found:,} documents")
    came_in = counts.read if before is None else sum(before.values())
    if counts.read != came_in or not counts.balanced:
        raise ValueError(
            f"{name}: the books do not balance: kept {counts.kept:,} + dropped {counts.dropped:,} is not "
            f"read {counts.read:,} + created {counts.created:,} with {came_in:,} documents coming in"
        )
    return {"counts": asdict(counts), **tally}

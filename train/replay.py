"""One batch of a run again: its rows, its documents and their text, and its loss.

    python -m train.replay --run runs/quickstart --step 412

Step N is the one that metrics.jsonl calls N: batch N - 1, with the parameters that step N - 1 left. They come from the
newest checkpoint before it, and the steps from there on are run again, so the loss is the one that was logged.
Documents come worst first: nats a token, where they lie, and what they say. The last line is the setting that leaves
these rows out.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.build import document_shards
from data.loader import Loader, open_loader
from data.loader_stats import RowInfo, row_ranges
from data.tables import read_documents
from models.checkpoints.run import check_same_base
from models.command import run_command
from models.encoder import EncoderConfig
from models.extend import load_extended
from models.rows import RowContext
from models.sharding import MeshConfig, batch_sharding, make_mesh
from train.checkpoint import Checkpoints
from train.config import Config
from train.distributed import rows_here, to_global
from train.loss import token_losses
from train.metrics import read_metrics
from train.optimizer import make_optimizer
from train.plan import describe_run
from train.run_folder import part_of, read_about
from train.state import (
    TrainState,
    create_state,
    describe_model,
    make_params,
    merge,
    new_state,
    split_params,
    whole_params,
)

TEXT = 300  # characters of each document that are shown


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A document's part in a batch: where it lies, how many of its tokens have loss, and their mean nats."""

    row: int
    source: str
    doc_id: str
    start: int
    tokens: int
    nats: float


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A batch again. loss: as logged, nats a unit of weight. before: step of the checkpoint that it was made from."""

    loss: float
    before: int
    rows: list[RowInfo]
    pieces: list[Piece]


def replay(run_dir: Path, step: int, *, dataset: Path | None = None, mesh: MeshConfig | None = None) -> Replay:
    """Makes batch number `step` - 1 of a run again and its loss, on this machine.

    dataset: where it lies now, if not where the run had it. mesh: None: one device. The batch does not depend on it.
    Errors: ValueError for a step that the run has not done, a folder that is no run, or a run of an encoder.
    """
    if step < 1:
        raise ValueError(f"--step {step}: steps are counted from 1")
    part = part_of(run_dir, step)
    dataset = dataset or Path(read_about(run_dir)["dataset"])
    config = replace(part.as_config(dataset), mesh=mesh or MeshConfig())
    if isinstance(config.model, EncoderConfig):
        raise ValueError(
            f"{run_dir} trained an encoder, whose loss is not one of next tokens: replay has no words for it"
        )
    told = max((int(line["step"]) for line in read_metrics(run_dir)), default=0)
    if step > min(told + config.train.log_every, config.train.num_steps):  # so many may have been done and not told of
        raise ValueError(f"--step {step}: {run_dir} has come to step {told} of {config.train.num_steps}")
    on_mesh = make_mesh(config.mesh, jax.devices()[: math.prod(astuple(config.mesh))])
    jax.set_mesh(on_mesh)
    loader = open_loader(dataset, config.loader)
    loader.begin(part.position.step, part.position.row)
    run = describe_run(config, on_mesh)
    before, state = state_before(run_dir, config, step, run.state)
    if before < part.position.step:
        raise ValueError(
            f"--step {step}: the settings changed after step {part.position.step} and no checkpoint from there to step "
            f"{step - 1} is left; replay a later step"
        )
    sharding = batch_sharding(on_mesh)
    places = rows_here(sharding, config.loader.global_batch_size)

    def on_devices(number: int) -> Any:
        return to_global(loader.batch(number), sharding, places, config.loader.global_batch_size)

    for number in range(before, step - 1):  # as the loop ran them
        state, _ = run.train_step(state, on_devices(number))
    graphdef = describe_model(config.model, on_mesh, config.tuning)[0]
    pieces = document_losses(graphdef, state, on_devices(step - 1), loader, step - 1, config)
    _, metrics = run.train_step(state, on_devices(step - 1))
    return Replay(
        loss=float(metrics["loss"]),
        before=before,
        rows=loader.rows_of(step - 1),
        pieces=sorted(pieces, key=lambda piece: -piece.nats),
    )


def state_before(run_dir: Path, config: Config, step: int, abstract: TrainState) -> tuple[int, TrainState]:
    """The newest state that the run kept from before `step`, and its step; 0 is the beginning, made again."""
    based = config.init_from is not None
    checkpoints = Checkpoints(run_dir, config.checkpoint, adapters=config.lora is not None, base=based, reading=True)
    kept = next((kept for kept in checkpoints.steps() if kept < step), 0)
    mesh = jax.tree.leaves(abstract)[0].sharding.mesh
    axes = describe_model(config.model, mesh, config.tuning)[1]
    weights = None
    if config.init_from is not None and (not kept or checkpoints.without_base):
        tokenizer, seed = run_dir / "tokenizer", config.train.seed
        weights, found = load_extended(config.init_from, config.model, mesh, config.tuning, tokenizer, seed=seed)
        if kept:
            check_same_base(run_dir, config.init_from, checkpoints.base(kept), found)
    if kept:
        return kept, checkpoints.restore(kept, abstract, split_params(weights, axes)[1] if weights else None)
    tx = make_optimizer(config.optimizer, axes)

    def create(params: Any = None) -> TrainState:
        params = params or make_params(config.model, config.train.seed, config.tuning)
        return new_state(params, tx, with_ema=config.train.ema_decay is not None, axes=axes)

    return 0, create_state(create, abstract, *([weights] if weights else []))


def document_losses(
    graphdef: Any, state: TrainState, batch: Any, loader: Loader, number: int, config: Config
) -> list[Piece]:
    """The mean nats of every document's tokens in a batch; tokens without loss weight do not count."""

    @jax.jit
    def nats(params: Any, batch: Any) -> jax.Array:
        """[B, T] float32: of every token, whatever its loss weight."""
        model = merge(graphdef, params)
        rows = RowContext.of_batch(batch)
        hidden_BTD = model(batch["inputs"], batch["segment_ids"], batch["positions"], rows=rows)
        return token_losses(
            hidden_BTD,
            model.output_kernel(),
            batch["targets"],
            vocab_chunk=config.train.vocab_chunk,
            softcap=model.config.embedding.logit_softcap,
        )[0].astype(jnp.float32)

    nats_BT = np.asarray(nats(whole_params(state.params, state.frozen), batch))
    weights_BT, segments_BT = np.asarray(batch["loss_weights"]), np.asarray(batch["segment_ids"])
    pieces = []
    for place, row in enumerate(loader.rows_of(number)):
        for segment, (doc_id, start) in enumerate(zip(row.doc_ids, row.starts), start=1):
            inside = (segments_BT[place] == segment) & (weights_BT[place] > 0)
            mean = float(nats_BT[place][inside].mean()) if inside.any() else 0.0
            pieces.append(
                Piece(row=row.row, source=row.source, doc_id=doc_id, start=start, tokens=int(inside.sum()), nats=mean)
            )
    return pieces


def texts_of(dataset: Path, pieces: Sequence[Piece]) -> dict[tuple[str, str], str]:
    """The texts of documents by (source, id), from the dataset's own tables."""
    wanted = {(piece.source, piece.doc_id) for piece in pieces}
    found: dict[tuple[str, str], str] = {}
    for shard in document_shards(dataset):
        for document in read_documents(shard):
            if (document.source, document.id) in wanted:
                found[document.source, document.id] = document.text
        if len(found) == len(wanted):
            break
    return found


def described(result: Replay, step: int, dataset: Path, show: int) -> str:
    """The replay as text for people."""
    texts = texts_of(dataset, result.pieces)
    made = f"the checkpoint of step {result.before}" if result.before else "the beginning, made again"
    lines = [f"step {step}: loss {result.loss!r}, from {made}; {len(result.pieces)} documents, the worst first", ""]
    for piece in result.pieces[:show]:
        text = " ".join(texts.get((piece.source, piece.doc_id), "(not in documents/)").split())
        lines += [
            f"{piece.nats:8.3f} nats a token, {piece.tokens} tokens from {piece.start} on, row {piece.row}  "
            f"{piece.source}: {piece.doc_id}",
            f"         {text[:TEXT]}{' ...' if len(text) > TEXT else ''}",
        ]
    if len(result.pieces) > show:
        lines.append(f"... and {len(result.pieces) - show} more (--show {len(result.pieces)})")
    worst = [row for row in result.rows if result.pieces and row.row == result.pieces[0].row]
    lines += [
        "",
        f"the life of a document: python -m data.explain --dataset {dataset} ID",
        f"to leave out the worst row: 'loader.skip={row_ranges(worst)}'",
        f"to leave out the batch:     'loader.skip={row_ranges(result.rows)}'",
    ]
    return "\n".join(lines)


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--step", required=True, type=int, metavar="N", help="as metrics.jsonl counts them, from 1")
    parser.add_argument("--dataset", metavar="DIR", help="where the dataset lies now; default: where the run had it")
    parser.add_argument("--show", type=int, default=10, metavar="K", help="documents to show")
    arguments = parser.parse_args(argv)
    run_dir = Path(arguments.run)
    dataset = Path(arguments.dataset or read_about(run_dir)["dataset"])
    result = replay(run_dir, arguments.step, dataset=dataset)
    print(described(result, arguments.step, dataset, arguments.show))
    return 0


if __name__ == "__main__":
    run_command(run)

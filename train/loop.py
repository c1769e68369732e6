"""The training loop, from top to bottom. Copy this file and change it: the step and its parts are functions to call.

To train on another objective, write one with the signature of `next_token_objective` (train/loss.py) and put it where
`objective` is set below; everything else stays. A run that is stopped in any way goes on when it is started again.
"""

import signal
from pathlib import Path
from typing import Any

import jax

from data.loader import open_loader
from data.manifest import read_manifest
from data.tokenizer import load_tokenizer
from models.extend import load_extended
from models.sharding import batch_sharding, check_mesh, make_mesh
from train.checkpoint import Checkpoints, Position
from train.config import Config, to_json
from train.distributed import rows_here, to_global
from train.evaluation import (
    compressed_scores,
    draw_samples,
    evaluated,
    heldout_scores,
    objective_values,
    open_heldout_rows,
)
from train.meeting import STOPPED, Processes
from train.memory import memory_by_kind
from train.metrics import Clock, MetricsWriter, ProgressLine, flop_per_token, peak_flop_per_s
from train.optimizer import make_optimizer, make_schedule, peak_rates
from train.parameters import base_size
from train.preflight import check_memory
from train.report import final_line, final_values, start_card, summary, write_report
from train.run_folder import prepare_run_folder
from train.state import (
    abstract_state,
    create_state,
    describe_model,
    make_params,
    new_state,
    shardings_of,
    split_params,
    whole_params,
)
from train.step import make_train_step


def train(
    config: Config, dataset: Path, *, profile: tuple[int, int] | None = None, processes: Processes | None = None
) -> int:
    """Trains to the last step, or goes on from the newest checkpoint; returns 0, or 75 where it was asked to stop.

    dataset: a folder that `data.build` made. profile: first and last step of a jax.profiler trace, in RUN/profile.
    processes: those of this run, which all call this at once; None: this one alone. Process 0 writes the run's files.
    Errors: ValueError and OSError with one line for people.
    """
    stop, processes = StopRequest(), processes or Processes()
    options, run_dir, last_step = config.train, Path(config.run_dir), config.train.num_steps
    processes.stacks = run_dir / "stacks"

    # ---- mesh and data -----------------------------------------------------------------------------------------------
    mesh = make_mesh(config.mesh)
    batch_size = config.loader.global_batch_size
    check_mesh(config.model, mesh, batch_size // options.grad_accum_steps, config.loader.seq_len)
    jax.set_mesh(mesh)
    tokenizer = load_tokenizer(dataset / "tokenizer")
    check_sizes(config, tokenizer.vocab_size)
    places = rows_here(batch_sharding(mesh), batch_size)  # of a batch, on this process's devices
    loader = open_loader(dataset, config.loader, tokenizer=tokenizer, rows=places)
    config.objective.check(config.lora, paired=loader.paired, adapters=loader.adapters)

    # ---- model, optimizer, step --------------------------------------------------------------------------------------
    graphdef, axes, placements = describe_model(config.model, mesh, config.tuning)  # axes: of what is trained
    tx = make_optimizer(config.optimizer, axes)
    schedule = make_schedule(config.schedule, last_step)
    with_ema = options.ema_decay is not None

    def create(params=None):
        params = params or make_params(config.model, options.seed, config.tuning)
        return new_state(params, tx, with_ema=with_ema, axes=axes)

    abstract = abstract_state(create, placements, mesh)  # shapes and shardings, no arrays yet
    warning = check_memory(memory_by_kind(config, abstract, mesh.shape))
    objective = config.objective.make(options)
    train_step = make_train_step(
        objective,
        graphdef,
        tx,
        schedule,
        options,
        shardings=shardings_of(abstract),
        batch_sharding=batch_sharding(mesh),
        dropout=config.draws,
    )
    nats = evaluated(config.objective.nats(options), graphdef, mesh)
    heldout_sums = evaluated(lambda model, batch: objective(model, batch)[1], graphdef, mesh)

    # ---- a new run, or the same one going on -------------------------------------------------------------------------
    adapters = config.lora is not None
    checkpoints = Checkpoints(
        run_dir, config.checkpoint, adapters=adapters, base=config.init_from is not None, processes=processes
    )
    first_step = checkpoints.latest or 0
    weights, fingerprint = None, None
    if config.init_from and (not first_step or checkpoints.without_base):
        weights, fingerprint = load_extended(
            config.init_from, config.model, mesh, config.tuning, dataset / "tokenizer", seed=options.seed
        )
    identity = {  # what must not change within a run
        "model": {k: v for k, v in to_json(config.model).items() if k not in ("dtype", "execution")},
        "optimizer": type(config.optimizer).__name__,
        "ema": with_ema,
        "tuning": {k: v for k, v in to_json(config.tuning).items() if k != "type"},
        "base": fingerprint if checkpoints.without_base else None,
        "dataset": read_manifest(dataset)["key"],
        "tokenizer": tokenizer.fingerprint,
        "loader": {k: v for k, v in to_json(config.loader).items() if k not in ("prefetch", "cache_bytes", "skip")},
    }
    finished = final_line(run_dir, last_step) if processes.chief and first_step == last_step else None
    if processes.exchange("finished", finished is not None)[0]:
        checkpoints.check(first_step, identity)
        if finished is not None:  # on process 0
            if not (run_dir / "report.html").exists():  # it was killed just before
                write_report(run_dir, config, dataset)
            print(summary(run_dir, finished))
        return 0
    row = 0  # the first global row of the next batch
    if first_step:
        state, there = checkpoints.resume(abstract, identity, split_params(weights, axes)[1] if weights else None)
        first_step, row = there.step, there.row_at(loader.tokens_per_row)
    else:
        state = create_state(create, abstract, *([weights] if weights else []))
    del weights
    loader.begin(first_step, row)

    def position(step: int) -> Position:
        """Where the data stands after a step."""
        return Position(step=step, row=loader.first_row(step), tokens_per_row=loader.tokens_per_row)

    flop = flop_per_token(config.model, base_size(state), config.loader.seq_len)
    peak = peak_flop_per_s(mesh.devices.flat[0].device_kind)
    if processes.chief:
        changed = prepare_run_folder(run_dir, config, dataset, position(first_step))
        card = start_card(config, mesh, abstract, flop, loader.stats.fill, first_step)
        print("\n".join([card, *changed, *([warning] if warning else [])]), flush=True)
    writer = MetricsWriter(run_dir, options, resume_step=first_step, config=to_json(config), silent=not processes.chief)
    progress = ProgressLine(start=first_step, total=last_step, silent=not processes.chief)
    clock, skipped_in_a_row = Clock(), 0

    # ---- what is told about a step -----------------------------------------------------------------------------------
    def settle(step: int, on_device: dict[str, jax.Array]) -> None:
        """Reads the metrics of `step`, which are there by the time the step after it is under way."""
        nonlocal skipped_in_a_row
        values = {name: float(value) for name, value in jax.device_get(on_device).items()}
        rate, step_seconds = clock.add(values.pop("tokens"))
        skipped_in_a_row = skipped_in_a_row + 1 if values.pop("skipped") else 0
        if skipped_in_a_row:
            rows = loader.rows_of(step - 1)
            documents = sorted({document for row in rows for document in row.doc_ids})
            named = {"skipped/rows": [row.row for row in rows], "skipped/documents": documents}
            writer.write(step, {"loss": values["loss"], "gradient_norm": values["gradient_norm"]} | named)
            progress.say(
                f"step {step} skipped: loss {values['loss']:.4g}, gradient norm {values['gradient_norm']:.4g}; rows "
                f"{rows[0].row}-{rows[-1].row} with {len(documents)} documents (all in metrics.jsonl): "
                + ", ".join(documents[:4])
            )
            if skipped_in_a_row >= options.max_skipped_in_a_row:
                raise ValueError(
                    f"{skipped_in_a_row} steps in a row were skipped, the last is step {step}: the run has diverged; "
                    "lower optimizer.learning_rate or raise train.spike_factor, and resume from an older checkpoint"
                )
        mfu = {}
        if peak is not None:
            mfu = {"palm": flop.palm * rate / peak / mesh.size, "causal": flop.causal * rate / peak / mesh.size}
        progress.update(
            step, f"loss {values['loss']:.3f}, {rate:,.0f} tokens/s" + (f", MFU {mfu['palm']:.1%}" if mfu else "")
        )
        if step % options.log_every == 0 or step == last_step:
            multiplier = values.pop("schedule")
            values |= {name: peak_rate * multiplier for name, peak_rate in peak_rates(config.optimizer).items()}
            values |= {"throughput/tokens_per_s": rate, "throughput/step_s": step_seconds}
            values |= {f"throughput/mfu_{name}": share for name, share in mfu.items()}
            writer.write(step, values)
            clock.restart()

    def evaluate(step: int) -> None:
        """Held-out bits per byte of the weights, and of their moving average where there is one."""
        processes.beat(step, "evaluating", patience=10.0)
        rows = open_heldout_rows(dataset, config.loader, config.evaluation.max_bytes, places)
        for name, params in {"": state.params, "ema_": state.ema}.items():
            if params is not None:
                weights = whole_params(params, state.frozen)
                scores = heldout_scores(nats, weights, rows, mesh)
                bits = {source: score.bits_per_byte for source, score in scores.items()}
                values = {f"heldout/{name}bits_per_byte/{source}": value for source, value in bits.items()}
                writer.write(step, values | ({} if name else objective_values(heldout_sums, weights, rows, mesh)))
                shown = ", ".join(f"{source} {value:.3f}" for source, value in bits.items())
                progress.say(f"step {step}: held-out {name.replace('_', ' ')}bits/byte {shown}")

    # ---- the loop ----------------------------------------------------------------------------------------------------
    # `step` counts the steps that are done when it ends, as state.step does: batch number step - 1 makes step `step`.
    unread = None  # the newest step's number and metrics, which are still on the device
    batches = loader.iterate(first_step)
    stopped = False
    if config.evaluation.at_start and not first_step:
        evaluate(0)
    for step in range(first_step + 1, last_step + 1):
        if profile and step == profile[0]:
            jax.profiler.start_trace(str(run_dir / "profile"))
        processes.beat(step, "waiting for its batch")
        batch = to_global(next(batches), batch_sharding(mesh), places, batch_size)
        processes.beat(step, "in its step", patience=10.0 if step == first_step + 1 else 1.0)  # which is compiled
        state, metrics = train_step(state, batch)  # dispatched, not awaited
        if unread:
            settle(*unread)
        unread = (step, metrics)
        if profile and step == profile[1]:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()

        stopped = stop.agreed(step) and step < last_step
        evaluating = step % config.evaluation.every_steps == 0 and step < last_step and not stopped
        saving = checkpoints.due(step) or step == last_step or stopped
        if evaluating or saving:
            # The device may idle from here. Whatever is told about a step is on disk before its checkpoint is: a
            # resumed run tells again only what comes after the checkpoint.
            settle(*unread)
            unread = None
            if evaluating:
                evaluate(step)
            if saving:
                processes.beat(step, "saving", patience=10.0)
                writer.flush()
                checkpoints.save(step, state, identity, position(step))
            clock.restart()
        if stopped:
            break

    # ---- the end -----------------------------------------------------------------------------------------------------
    processes.beat(last_step, "finishing", patience=10.0)
    progress.close()
    batches.close()
    checkpoints.close()  # the last one is whole on disk from here on: what follows is made again where it is cut short
    if stopped:
        writer.close()
        if processes.chief:
            print(f"stopped at step {step} of {last_step}, saved; the same command goes on from there", flush=True)
        return STOPPED
    weights = whole_params(state.params if state.ema is None else state.ema, state.frozen)
    rows = open_heldout_rows(dataset, config.loader, config.evaluation.max_final_bytes, places)
    scores = heldout_scores(nats, weights, rows, mesh)
    samples = ""
    if config.evaluation.prompts:
        samples = draw_samples(graphdef, weights, tokenizer, config.evaluation, seed=options.seed)
    values = objective_values(heldout_sums, weights, rows, mesh)
    if not processes.chief:
        return 0
    values = final_values(scores, compressed_scores(dataset, rows)) | values
    (run_dir / "samples.txt").write_text(samples, encoding="utf-8")
    writer.write(last_step, values)
    writer.close()
    write_report(run_dir, config, dataset)
    print(samples)
    print(summary(run_dir, {"step": last_step} | values), flush=True)
    return 0


def check_sizes(config: Config, vocab_size: int) -> None:
    """Refuses sizes that do not fit each other, before anything is made."""
    if config.model.vocab_size < vocab_size:
        raise ValueError(
            f"model.vocab_size={config.model.vocab_size} is below the {vocab_size} pieces of the tokenizer in "
            f"{config.data.path}: set model.vocab_size={vocab_size}, or build the dataset with another tokenizer"
        )
    rows, parts = config.loader.global_batch_size, config.train.grad_accum_steps
    if rows % parts:
        raise ValueError(
            f"train.grad_accum_steps={parts} does not divide loader.global_batch_size={rows}: take a divisor of {rows}"
        )


class StopRequest:
    """Notes SIGTERM, so that the loop ends after the step under way, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        if jax.process_count() == 1:  # else jax notes it, and tells the other processes
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self.asked = True

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step; all processes of a run get the same answer at the same step."""
        if jax.process_count() == 1:
            return self.asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

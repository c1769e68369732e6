"""Checkpoints of a run, written while training goes on, with Orbax v1.

RUN/checkpoints/STEP/ holds the items params, opt, data (position), meta (model config, versions) and, where wanted,
ema. A run with adapters that started from other weights has them, and what else it trains, as the item lora in place
of params: the base is read again from where it came from, and known by its fingerprint (`base` in the identity). An
item can be read without the others. A folder gets its name when all of it is written: a half-written one is never taken
for whole, and is removed when the run is opened again. One that cannot be read is set aside, and the run goes on from
the one before.

With `local`, checkpoints are written to a fast folder often, and those of every `every_steps` are copied from there.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from train.identity import Mismatch, check_same
from train.meeting import Processes
from train.state import Params, TrainState, split_params, whole_params
from train.tiers import (
    Copier,
    lack_of_room,
    open_folder,
    remove_half_written,
    set_aside,
    unreadable,
    unwritten,
    whole_steps,
)

SLOW_SECONDS = 2.0  # a wait for the save before, above which it is told


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """every_steps: steps between checkpoints (the last step always has one). keep: how many of the newest stay.

    path: where they go, also gs://BUCKET/FOLDER; "" for RUN/checkpoints. local: a fast folder that all processes see (a
    RAM disk, an SSD) that has one more often, every `local_every_steps`; "" for none.
    base_weights: a run with adapters writes the weights under them too, as the item params.
    carry_on: a run whose batch size or seq_len was changed goes on from the token that it had come to.
    """

    every_steps: int = 500
    keep: int = 2
    path: str = ""
    local: str = ""
    local_every_steps: int = 100
    base_weights: bool = False
    carry_on: bool = False

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep", "local_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"checkpoint.{name}={getattr(self, name)}: expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands in its data: `row` is the first global row of the batch after step `step`.

    tokens_per_row: on average, which is how a row is found again where seq_len changed.
    """

    step: int
    row: int
    tokens_per_row: float

    def row_at(self, tokens_per_row: float) -> int:
        """The row before which as many tokens lie where a row has so many: the same one where that did not change."""
        return round(self.row * self.tokens_per_row / tokens_per_row)


class Checkpoints:
    """The checkpoints of one run. One save is under way at a time; call `close` (or use `with`) at the end.

    adapters: the run trains adapters. base: it may read what is under them again from elsewhere. reading: of a run that
    may be under way elsewhere: nothing is cleaned up.
    """

    def __init__(
        self,
        run_dir: Path,
        config: CheckpointConfig,
        *,
        adapters: bool = False,
        base: bool = False,
        processes: Processes | None = None,
        reading: bool = False,
        tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    ):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every failure several times, and raises it
        self.adapters, self.without_base = adapters, adapters and base and not config.base_weights
        self._config, self._processes, self._tell = config, processes or Processes(), tell
        self.durable = open_folder(config.path or run_dir / "checkpoints")
        self.folder = open_folder(Path(config.local) / run_dir.resolve().name) if config.local else self.durable
        self._pending: tuple[int, Any] | None = None
        self._failure: OSError | None = None  # of the newest save
        self._ending = self._broken = False
        if self._processes.chief and not reading:
            # Orbax clears these in the background, and not always before the first save
            remove_half_written(self.folder)
            remove_half_written(self.durable)
        self._copier = (
            Copier(self.folder, self.durable, config.keep) if config.local and self._processes.chief else None
        )
        self._orbax = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(config.keep),
            cleanup_tmp_directories=not reading,
        )

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after this step, the last one aside."""
        return step % self._config.every_steps == 0 or (
            bool(self._config.local) and step % self._config.local_every_steps == 0
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return next(iter(self.steps()), None)

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, newest first."""
        return sorted({*whole_steps(self.folder), *whole_steps(self.durable)}, reverse=True)

    def _where(self, step: int) -> Any:
        """The folder of a step's checkpoint: the fast one where it is there."""
        return (self.folder if step in whole_steps(self.folder) else self.durable) / str(step)

    def save(self, step: int, state: TrainState, identity: Mapping[str, Any], position: Position | None = None) -> None:
        """Starts to write the checkpoint of `step`; returns when the device's arrays are copied.

        step: also the number of batches that were read. identity: JSON values that must be the same when the run goes
        on (`resume`). position: which rows they were.
        A save that cannot be written is told, and training goes on; the second in a row ends it.
        Errors: OSError where this save and the one before it could not be written.
        """
        before = self._settle()
        if self._copier is not None and self._copier.step in whole_steps(self.folder)[self._config.keep - 1 :]:
            self._copier.wait()  # of a checkpoint that this save will push out
        self._warn_of_room(step, state)
        position = position or Position(step=step, row=0, tokens_per_row=1.0)
        data = {"position": step, **position.__dict__}
        items = self._items(state) | {"data": data, "meta": {"step": step, "identity": dict(identity)}}
        try:
            self._pending = (step, self._orbax.save_checkpointables_async(step, items, force=True))
        except Exception as error:
            self._failed(unwritten(self.folder, step, error))
        if before is not None and self._failure is not None:
            with contextlib.suppress(Exception):
                self._orbax.close()  # else its threads keep the process alive
            raise self._failure

    def wait(self) -> None:
        """Returns when the save under way is whole on disk; OSError where it could not be written."""
        failure, self._failure = self._settle(), None
        if failure is not None:
            self._broken = True
            raise failure
        if self._copier is not None:
            self._copier.wait()

    def _settle(self) -> OSError | None:
        """Waits for the save under way; what went wrong with it, which has been told."""
        if self._pending is not None:
            (step, response), self._pending = self._pending, None
            began = time.monotonic()
            try:
                if response is not None:
                    response.result()
                self._failure = None
            except Exception as error:
                self._failed(unwritten(self.folder, step, error))
            else:
                self._whole(step)
            waited = time.monotonic() - began
            if waited > SLOW_SECONDS:
                self._tell(
                    f"warning: training waited {waited:.0f} s for the checkpoint of step {step} to be written: "
                    "write them less often (checkpoint.every_steps) or to a faster folder (checkpoint.local)"
                )
        return self._failure

    def _failed(self, error: OSError) -> None:
        if self._failure is None:
            self._tell(f"warning: {error}")
        self._failure = error

    def _whole(self, step: int) -> None:
        """A checkpoint is whole: those that are for keeps go to the durable folder."""
        if self._copier is not None and (step % self._config.every_steps == 0 or self._ending):
            try:
                self._copier.start(step)
            except OSError as error:
                self._failed(error)

    def _warn_of_room(self, step: int, state: TrainState) -> None:
        """Says in time that the disk is about to be full."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(self._items(state)))
        for folder in {self.folder, self.durable} if self._processes.chief else ():
            if short := lack_of_room(folder, needed):
                advice = f"make room, or lower checkpoint.keep={self._config.keep}"
                self._tell(f"warning: {short} for the checkpoint of step {step}: {advice}")

    def check(self, step: int, identity: Mapping[str, Any]) -> Position:
        """Refuses, with a ValueError that names what differs, a checkpoint of another model, optimizer or dataset.

        Returns where it stands in the data.
        """
        where = self._where(step)
        try:
            items = ocp.load_checkpointables(where, {"meta": None, "data": None})
            saved, position = dict(items["meta"]["identity"]), items["data"].pop("position")
        except Exception as error:
            raise unreadable(where, error) from error
        check_same(where, saved, identity, carry_on=self._config.carry_on)
        if position != step:
            raise unreadable(where, ValueError(f"it stands at data position {position}, expected {step}"))
        return Position(**items["data"])

    def restore(self, step: int, abstract: TrainState, frozen: Params | None = None) -> TrainState:
        """The state of a checkpoint, each leaf placed as `abstract` says; the mesh may differ from the one that saved.

        frozen: the weights under the adapters, where the checkpoint has none (`without_base`).
        Errors: ValueError where the files cannot be read.
        """
        where = self._where(step)
        try:
            loaded = ocp.load_checkpointables(where, self._items(abstract))
        except Exception as error:
            raise unreadable(where, error) from error
        if self.adapters:
            params, frozen = loaded["lora"], loaded.get("params", frozen)
        else:
            params, frozen = split_params(loaded["params"], abstract.params)
        return TrainState(params=params, frozen=frozen, ema=loaded.get("ema"), **loaded["opt"])

    def _items(self, state: TrainState) -> dict[str, Any]:
        """The state's arrays by item; the optimizer's item carries the counters too."""
        counters = {name: getattr(state, name) for name in ("step", "skipped", "norm_mean")}
        items: dict[str, Any] = {"opt": {"opt_state": state.opt_state, **counters}}
        if not self.adapters:
            items["params"] = whole_params(state.params, state.frozen)
        else:
            items |= {"lora": state.params} | ({} if self.without_base else {"params": state.frozen})
        return items if state.ema is None else items | {"ema": state.ema}

    def resume(
        self, abstract: TrainState, identity: Mapping[str, Any], frozen: Params | None = None
    ) -> tuple[TrainState, Position]:
        """The newest checkpoint that can be read on all processes. One that cannot is set aside, with a warning.

        Errors: ValueError where it is of another run, or where none can be read.
        """
        for step in self._processes.exchange("checkpoints", self.steps())[0]:
            problem = ""
            try:
                position = self.check(step, identity)
                state = self.restore(step, abstract, frozen)
            except Mismatch:
                raise
            except ValueError as error:
                problem = str(error)
            problems = [text for text in self._processes.exchange(f"restored {step}", problem) if text]
            if not problems:
                return state, position
            if self._processes.chief:
                for folder in {self.folder, self.durable}:
                    if step in whole_steps(folder):
                        name = set_aside(folder, step).name
                        self._tell(f"warning: {problems[0]}; it is kept as {name}, and the one before it is tried")
            self._processes.exchange(f"set aside {step}", True)
            self._orbax.reload()
        raise ValueError(f"no checkpoint in {self.folder} could be read: give this run another run_dir to start anew")

    def close(self) -> None:
        """Waits for the save under way and ends Orbax's threads."""
        self._ending = True
        try:
            self.wait()
        finally:
            with contextlib.suppress(*([Exception] if self._broken else [])):  # it raises a failed save once more
                self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

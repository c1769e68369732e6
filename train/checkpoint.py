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

from train.identity import Mismatch, Position, check_same
from train.meeting import Processes
from train.state import Params, TrainState, split_params, whole_params
from train.tiers import (
    Copier,
    about,
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

    path: where they go, also gs://BUCKET/FOLDER, with a copy of the run's other files in PATH/run (train/mirror.py);
    "" for RUN/checkpoints. local: a fast folder that all processes see (a RAM disk, an SSD) that has one more often,
    every `local_every_steps`; "" for none.
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


class Checkpoints:
    """The checkpoints of one run. One save is under way at a time; call `close` (or use `with`) at the end.

    adapters: the run trains adapters. base: it may read what is under them again from elsewhere. reading: of a run that
    may be under way elsewhere: nothing is cleaned up. latest: step of the newest whole one when this was opened.
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
        self._failures: list[OSError] = []  # of the newest saves in a row
        self._passed: dict[Any, str] = {}  # checkpoints that could not be read, and why
        self._ending = self._broken = False
        if self._processes.chief and not reading:
            # Orbax clears these in the background, and not always before the first save
            remove_half_written(self.folder)
            remove_half_written(self.durable)
        copying = config.local and self._processes.chief
        self._copier = Copier(self.folder, self.durable, config.keep) if copying else None
        # All processes go the same way: one that reads a shared disk's old listing would begin anew, and the rest wait.
        self.latest: int | None = self._processes.exchange("newest checkpoint", next(iter(self.steps()), None))[0]
        self._orbax = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(config.keep),
            cleanup_tmp_directories=not reading,
        )

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after this step, the last one aside."""
        locally = bool(self._config.local) and step % self._config.local_every_steps == 0
        return locally or step % self._config.every_steps == 0

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, newest first."""
        return sorted({*whole_steps(self.folder), *whole_steps(self.durable)}, reverse=True)

    def _where(self, step: int) -> Any:
        """The folder of a step's checkpoint: the fast one where it is there and was not passed over."""
        places = [folder / str(step) for folder in self._folders() if step in whole_steps(folder)]
        return next((place for place in places if place not in self._passed), self.durable / str(step))

    def _folders(self) -> list[Any]:
        return [self.folder, self.durable] if self._config.local else [self.durable]

    def save(self, step: int, state: TrainState, identity: Mapping[str, Any], position: Position | None = None) -> None:
        """Starts to write the checkpoint of `step`; returns when the device's arrays are copied.

        step: also the number of batches that were read. identity: JSON values that must be the same when the run goes
        on (`resume`). position: which rows they were.
        A save that cannot be written is told, and training goes on; the second in a row ends it.
        Errors: OSError where this save and the one before it could not be written.
        """
        self._settle()
        if self._copier is not None and self._copier.step in whole_steps(self.folder)[self._config.keep - 1 :]:
            self._copied()  # of a checkpoint that this save will push out
        self._warn_of_room(step, state)
        position = position or Position(step=step, row=0, tokens_per_row=1.0)
        data = {"position": step, **position.__dict__}
        items = self._items(state) | {"data": data, "meta": {"step": step, "identity": dict(identity)}}
        try:
            self._pending = (step, self._orbax.save_checkpointables_async(step, items, force=True))
        except Exception as error:
            self._failed(unwritten(self.folder, step, error))
        if len(self._failures) > 1:
            with contextlib.suppress(Exception):
                self._orbax.close()  # else its threads keep the process alive
            raise self._failures[-1]

    def wait(self) -> None:
        """Returns when the save under way is whole on disk; OSError where it could not be written."""
        self._settle()
        failures, self._failures = self._failures, []
        if failures:
            self._broken = True
            raise failures[-1]
        if self._copier is not None:
            self._copier.wait()

    def _settle(self) -> None:
        """Waits for the save under way; what went wrong with it is told and noted."""
        if self._pending is not None:
            (step, response), self._pending = self._pending, None
            began = time.monotonic()
            try:
                response.result()
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

    def _failed(self, error: OSError) -> None:
        if not self._failures:
            self._tell(f"warning: {error}")
        self._failures.append(error)

    def _whole(self, step: int) -> None:
        """A checkpoint is whole: those that are for keeps go to the durable folder."""
        self._failures = []
        if self._copier is not None and (step % self._config.every_steps == 0 or self._ending):
            self._copied()
            self._copier.start(step)

    def _copied(self) -> None:
        """Waits for the copy under way. One that failed is told; OSError for the second in a row."""
        assert self._copier is not None
        try:
            self._copier.wait()
        except OSError as error:
            if self._copier.failed > 1:
                raise
            self._tell(f"warning: {error}")

    def _warn_of_room(self, step: int, state: TrainState) -> None:
        """Says in time that the disk is about to be full."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(self._items(state)))
        for folder in self._folders() if self._processes.chief else ():
            if short := lack_of_room(folder, needed):
                advice = f"make room, or lower checkpoint.keep={self._config.keep}"
                self._tell(f"warning: {short} for the checkpoint of step {step}: {advice}")

    def check(self, step: int, identity: Mapping[str, Any]) -> Position:
        """Refuses, with a ValueError that names what differs, a checkpoint of another model, optimizer or dataset.

        Returns where it stands in the data.
        """
        where = self._where(step)
        theirs, data = about(where)
        check_same(where, theirs, identity, carry_on=self._config.carry_on)
        if (position := data.pop("position")) != step:
            raise unreadable(where, ValueError(f"it stands at data position {position}, expected {step}"))
        return Position(**data)

    def base(self, step: int) -> str | None:
        """The fingerprint of the weights that are under a checkpoint's adapters and not in it."""
        return about(self._where(step))[0]["base"]

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
        """The newest checkpoint that can be read on all processes. Newer ones are set aside then, with a warning.

        Errors: ValueError where it is of another run, or where none can be read: all stay where they are.
        """
        steps = [step for step in self.steps() for folder in self._folders() if step in whole_steps(folder)]
        for number, step in enumerate(self._processes.exchange("checkpoints", steps)[0]):
            where, problem = self._where(step), ""
            try:
                position = self.check(step, identity)
                state = self.restore(step, abstract, frozen)
            except Mismatch:
                raise
            except ValueError as error:
                problem = str(error)
            problems = [text for text in self._processes.exchange(f"restored {number}", problem) if text]
            if not problems:
                self._set_aside()
                return state, position
            self._passed[where] = problems[0]
        raise ValueError(
            f"no checkpoint in {self.folder} could be read ({next(iter(self._passed.values()))}); all are left as they "
            "are: find out why, or give this run another run_dir to start anew"
        )

    def _set_aside(self) -> None:
        """Gives what could not be read another name: the run is about to come to those steps again."""
        for where, problem in self._passed.items() if self._processes.chief else ():
            name = set_aside(where).name
            self._tell(f"warning: {problem}; it is kept as {name}, and the one before it is taken")
        if self._passed:
            self._processes.exchange("set aside", True)
            self._orbax.reload()

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

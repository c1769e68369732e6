"""Checkpoints of a run, written while training goes on, with Orbax v1.

RUN/checkpoints/STEP/ holds the items params, opt, data (position), meta (model config, versions) and, where wanted,
ema. An item can be read without the others. A folder gets its name when all of it is written: a half-written one is
never taken for whole, and is removed when the run is opened again.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from train.state import TrainState


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """every_steps: steps between checkpoints (the last step always has one). keep: how many of the newest stay."""

    every_steps: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError(f"checkpoint.every_steps={self.every_steps} and keep={self.keep} must be at least 1")


class Checkpoints:
    """The checkpoints of one run folder. One save is under way at a time; call `close` (or use `with`) at the end."""

    def __init__(self, run_dir: Path, config: CheckpointConfig):
        logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax logs every file at INFO
        self.folder = (run_dir / "checkpoints").resolve()
        self.every_steps = config.every_steps
        self._pending: tuple[int, Any] | None = None
        self._orbax = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(config.keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._orbax.latest.step if self._orbax.latest else None

    def save(self, step: int, state: TrainState, *, data: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Starts to write the checkpoint of `step`; returns when the device's arrays are copied.

        data: where the data stream stands. meta: JSON values that `restore` compares.
        Errors: OSError where this or the save before it could not be written.
        """
        self.wait()
        items = _items(state) | {"data": dict(data), "meta": dict(meta)}
        try:
            self._pending = (step, self._orbax.save_checkpointables_async(step, items, force=True))
        except Exception as error:
            raise _unwritten(step, self.folder, error) from error

    def wait(self) -> None:
        """Returns when the save under way is whole on disk; OSError where it could not be written."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            if response is not None:
                response.result()
        except Exception as error:
            raise _unwritten(step, self.folder, error) from error

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON item `meta` of a checkpoint."""
        return self._orbax.load_checkpointables(step, {"meta": None})["meta"]

    def restore(
        self, step: int, abstract: TrainState, *, data: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> TrainState:
        """The state of a checkpoint, each leaf placed as `abstract` says; the mesh may differ from the one that saved.

        Errors: ValueError naming what differs, where the checkpoint is of another model, optimizer or data.
        """
        where = self.folder / str(step)
        saved = self._orbax.load_checkpointables(step, {"meta": None, "data": None})
        _refuse_other(where, saved["meta"], meta)
        _refuse_other(where, saved["data"], data)
        items = _items(abstract)
        try:
            loaded = self._orbax.load_checkpointables(step, items)
        except Exception as error:
            reason = str(error).split("\n")[0][:200]
            raise ValueError(
                f"checkpoint {where} could not be read ({reason}): remove this folder to resume from the one before it"
            ) from error
        return TrainState(params=loaded["params"], ema=loaded.get("ema"), **loaded["opt"])

    def close(self) -> None:
        """Waits for the save under way and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _items(state: TrainState) -> dict[str, Any]:
    """The state's arrays by item; the optimizer's item carries the counters too."""
    counters = {name: getattr(state, name) for name in ("step", "skipped", "norm_mean")}
    items = {"params": state.params, "opt": {"opt_state": state.opt_state, **counters}}
    return items if state.ema is None else items | {"ema": state.ema}


def _refuse_other(where: Path, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """ValueError where a value that both have differs: both the saved and the given one are named."""
    before, now = _flat(saved), _flat(given)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name) and name.split(".")[0] in saved:
            raise ValueError(
                f"checkpoint {where} is of another run: it was written with {name}={before.get(name)!r}, this run has "
                f"{now.get(name)!r}; set it back, or give this run a run_dir of its own"
            )


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    """JSON values by dotted name."""
    if isinstance(value, Mapping):
        return {k: v for name, item in value.items() for k, v in _flat(item, f"{at}.{name}" if at else name).items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in _flat(item, f"{at}.{i}").items()}
    return {at: value}


def _unwritten(step: int, folder: Path, error: Exception) -> OSError:
    reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
    return OSError(
        f"the checkpoint of step {step} could not be written to {folder}: {reason}; make room or fix the "
        "folder and run the same command: it resumes from the newest whole checkpoint"
    )


def abstract_leaves(state: TrainState) -> TrainState:
    """Shape, dtype and sharding of every leaf of a live state."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)

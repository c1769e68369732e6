"""Checkpoints of a run, written while training goes on, with Orbax v1.

RUN/checkpoints/STEP/ holds the items params, opt, data (position), meta (model config, versions) and, where wanted,
ema. A run with adapters that started from other weights has them, and what else it trains, as the item lora in place
of params: the base is read again from where it came from, and known by its fingerprint (`base` in the identity). An
item can be read without the others. A folder gets its name when all of it is written: a half-written one is never
taken for whole, and is removed when the run is opened again.
"""

import contextlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from train.state import Params, TrainState, split_params, whole_params


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """every_steps: steps between checkpoints (the last step always has one). keep: how many of the newest stay.

    base_weights: a run with adapters writes the weights under them too, as the item params.
    """

    every_steps: int = 500
    keep: int = 2
    base_weights: bool = False

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError(f"checkpoint.every_steps={self.every_steps} and keep={self.keep} must be at least 1")


class Checkpoints:
    """The checkpoints of one run folder. One save is under way at a time; call `close` (or use `with`) at the end.

    adapters: the run trains adapters. base: it may read what is under them again from elsewhere.
    """

    def __init__(self, run_dir: Path, config: CheckpointConfig, *, adapters: bool = False, base: bool = False):
        self.adapters, self.without_base = adapters, adapters and base and not config.base_weights
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every failure several times, and raises it
        self.folder = (run_dir / "checkpoints").resolve()
        self.every_steps = config.every_steps
        self._pending: tuple[int, Any] | None = None
        self._failed = False
        if jax.process_index() == 0:  # Orbax clears these in the background, and not always before the first save
            for half_written in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(half_written, ignore_errors=True)
        self._orbax = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(config.keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._orbax.latest.step if self._orbax.latest else None

    def save(self, step: int, state: TrainState, identity: Mapping[str, Any]) -> None:
        """Starts to write the checkpoint of `step`; returns when the device's arrays are copied.

        step: also the position in the data, because batch number n makes step n + 1. identity: JSON values that must
        be the same when the run goes on (`check`).
        Errors: OSError where this or the save before it could not be written.
        """
        self.wait()
        items = self._items(state) | {"data": {"position": step}, "meta": {"step": step, "identity": dict(identity)}}
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
            self._failed = True
            raise _unwritten(step, self.folder, error) from error

    def check(self, step: int, identity: Mapping[str, Any]) -> None:
        """Refuses, with a ValueError that names what differs, a checkpoint of another model, optimizer or dataset."""
        where = self.folder / str(step)
        try:
            items = self._orbax.load_checkpointables(step, {"meta": None, "data": None})
            before, now = _flat(items["meta"]["identity"]), _flat(identity)
            position = items["data"]["position"]
        except Exception as error:
            raise _unreadable(where, error) from error
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise ValueError(
                    f"checkpoint {where} is of another run: it has {name}={before.get(name)!r}, this config has "
                    f"{now.get(name)!r}; set it back, or give this run a run_dir of its own"
                )
        if position != step:
            raise ValueError(
                f"checkpoint {where} stands at data position {position}, expected {step}: remove the folder"
            )

    def restore(self, step: int, abstract: TrainState, frozen: Params | None = None) -> TrainState:
        """The state of a checkpoint, each leaf placed as `abstract` says; the mesh may differ from the one that saved.

        frozen: the weights under the adapters, where the checkpoint has none (`without_base`).
        Errors: ValueError where the files cannot be read.
        """
        try:
            loaded = self._orbax.load_checkpointables(step, self._items(abstract))
        except Exception as error:
            raise _unreadable(self.folder / str(step), error) from error
        if self.adapters:
            params, frozen = loaded["lora"], loaded.get("params", frozen)
        else:
            params, frozen = split_params(loaded["params"], abstract.params)
        return TrainState(params=params, frozen=frozen, ema=loaded.get("ema"), **loaded["opt"])

    def _items(self, state: TrainState) -> dict[str, Any]:
        """The state's arrays by item; the optimizer's item carries the counters too."""
        counters = {name: getattr(state, name) for name in ("step", "skipped", "norm_mean")}
        items = {"opt": {"opt_state": state.opt_state, **counters}}
        if not self.adapters:
            items["params"] = whole_params(state.params, state.frozen)
        else:
            items |= {"lora": state.params} | ({} if self.without_base else {"params": state.frozen})
        return items if state.ema is None else items | {"ema": state.ema}

    def close(self) -> None:
        """Waits for the save under way and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(*([Exception] if self._failed else [])):  # it raises a failed save once more
                self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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


def _unreadable(where: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ValueError(
        f"checkpoint {where} could not be read ({reason}): remove this folder to resume from the one before"
    )

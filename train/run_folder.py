"""RUN/config.json: what a run was started with, and what was changed each time that it went on."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from data.build import DataConfig
from data.document import Document, Dropped
from train.checkpoint import Position
from train.config import Config, from_json, to_json
from train.identity import flat
from train.preflight import commit, versions


@dataclass(frozen=True, kw_only=True)
class Part:
    """Steps of a run with one config: those after `position.step`, until the next part begins.

    config: JSON values. position: where the batches of this part begin.
    """

    position: Position
    config: dict[str, Any]

    def as_config(self, dataset: Path) -> Config:
        """The config itself, with the dataset as it lies there in place of the sources that it was built from."""
        data = DataConfig(path=str(dataset), sources=(Built(),), tokenizer=None, rebuild=False)
        return from_json(Config, self.config | {"data": data})


@dataclass(frozen=True, kw_only=True)
class Built:
    """In place of the sources of a dataset that is not built again: a name without documents."""

    name: str = "built"

    version: ClassVar[int] = 1
    code_modules: ClassVar[tuple[str, ...]] = ()
    libraries: ClassVar[tuple[str, ...]] = ()

    def shards(self) -> Sequence[Any]:
        """None."""
        return ()

    def documents(self, shard: Any) -> Iterator[Document | Dropped]:
        """None."""
        return iter(())

    def inputs_key(self) -> Any:
        """Nothing is read."""
        return None


def prepare_run_folder(run_dir: Path, config: Config, dataset: Path, position: Position) -> list[str]:
    """RUN with config.json (argv, commit, versions, resolved config) and a copy of the tokenizer: whole by itself.

    Returns what differs from the time before, a line each; empty for a new run.
    Errors: ValueError for a run that has come further than the config lets it.
    """
    if position.step > config.train.num_steps:
        raise ValueError(
            f"{run_dir} has come to step {position.step}, beyond train.num_steps={config.train.num_steps}: raise it "
            "or give this run a run_dir of its own"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / "tokenizer").exists():
        partial = run_dir / "tokenizer.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(dataset / "tokenizer", partial)
        partial.rename(run_dir / "tokenizer")
    before = read_about(run_dir) if (run_dir / "config.json").exists() and position.step else {}
    now = to_json(config)
    here = {"position": position.__dict__, "config": now}
    parts = [part for part in before.get("parts", []) if part["position"]["step"] < position.step]
    if not parts or parts[-1]["config"] != now or parts[-1]["position"]["tokens_per_row"] != position.tokens_per_row:
        parts.append(here)
    about = {
        "argv": sys.argv,
        "commit": commit(),
        "versions": versions(),
        "dataset": str(dataset),
        "config": now,
        "parts": parts,
    }
    temporary = run_dir / "config.json.tmp"
    temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    temporary.replace(run_dir / "config.json")
    return changes(before, about) if before else []


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two states of config.json, a line each."""
    kinds = [flat({key: about.get(key) for key in ("commit", "versions", "config")}) for about in (before, now)]
    old, new = kinds
    return [
        f"changed      {name.removeprefix('config.')}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def read_about(run_dir: Path) -> dict[str, Any]:
    """RUN/config.json; ValueError where the folder is no run."""
    try:
        return json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{run_dir} is no run folder: its config.json cannot be read ({error})") from error


def part_of(run_dir: Path, step: int) -> Part:
    """The part of a run that step number `step` (from 1) belongs to; ValueError where the folder begins after it."""
    parts = [
        Part(position=Position(**part["position"]), config=part["config"]) for part in read_about(run_dir)["parts"]
    ]
    before = [part for part in parts if part.position.step < step]
    if not before:
        raise ValueError(
            f"--step {step}: {run_dir} knows of the steps after {parts[0].position.step} alone: those before were made "
            "with another run_dir, or on a disk that is gone"
        )
    return before[-1]

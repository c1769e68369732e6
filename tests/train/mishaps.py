"""`train.main` with something that happens to it, once: what the tests of several processes run.

MISHAP="kill:7:1" in the environment: process 1 is ended by SIGKILL at step 7; "term", "stop" and "quit" (SIGTERM,
SIGSTOP, exit code 3); "save": SIGKILL while the checkpoint of that step is being written; "final": SIGKILL during the
final evaluation. RECORD=FOLDER: what is fed to this process's devices, a file a step. SAYS_WAITING: seconds between two
lines of a process that waits.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

import train.loop
import train.meeting
from models.command import run_command
from train import main
from train.checkpoint import Checkpoints
from train.meeting import Processes

SIGNALS = {"kill": signal.SIGKILL, "save": signal.SIGKILL, "final": signal.SIGKILL} | {
    "term": signal.SIGTERM,
    "stop": signal.SIGSTOP,
}
doing = {"step": 0, "what": ""}


def happen(kind: str, step: int, process: int) -> None:
    """The mishap, where it is due and has not been yet."""
    wanted = os.environ.get("MISHAP", "none:0:0").split(":")
    marker = Path(os.environ.get("MISHAP_DONE", "mishap_done"))
    if [kind, str(process)] == [wanted[0], wanted[2]] and step >= int(wanted[1]) and not marker.exists():
        marker.write_text("")
        if kind == "quit":
            os._exit(3)
        os.kill(os.getpid(), SIGNALS[kind])


def with_mishaps() -> None:
    """Puts the mishaps in their places."""
    beat, save, place, score = Processes.beat, Checkpoints.save, train.loop.to_global, train.loop.heldout_scores
    train.meeting.SAYS_WAITING = float(os.environ.get("SAYS_WAITING", train.meeting.SAYS_WAITING))

    def beats(self, step, what, **options):
        beat(self, step, what, **options)
        doing.update(step=step, what=what)
        if what == "in its step":
            for kind in ("kill", "term", "stop", "quit"):
                happen(kind, step, self.index)

    def saves(self, step, *arguments):
        save(self, step, *arguments)
        happen("save", step, self._processes.index)

    def places(batch, sharding, rows, batch_size):
        arrays = place(batch, sharding, rows, batch_size)
        if folder := os.environ.get("RECORD"):
            parts = {}
            for name, array in arrays.items():
                for shard in array.addressable_shards:
                    first = shard.index[0].indices(batch_size)[0]
                    parts[f"{name}/{first}"] = np.asarray(shard.data)
            Path(folder).mkdir(parents=True, exist_ok=True)
            index = os.environ.get("SLUICE_PROCESS_INDEX", "0")
            np.savez(Path(folder) / f"{doing['step']}.{index}.npz", **parts)
        return arrays

    def scores(*arguments):
        found = score(*arguments)
        if doing["what"] == "finishing":
            happen("final", doing["step"], int(os.environ.get("SLUICE_PROCESS_INDEX", "0")))
        return found

    Processes.beat, Checkpoints.save, train.loop.to_global = beats, saves, places
    train.loop.heldout_scores = scores


def recorded(folder: Path) -> dict[int, dict[str, np.ndarray]]:
    """{step: the global batch} as all processes together fed it."""
    steps: dict[int, dict[str, dict[int, np.ndarray]]] = {}
    for path in folder.iterdir():
        with np.load(path) as parts:
            for key in parts.files:
                name, first = key.rsplit("/", 1)
                steps.setdefault(int(path.name.split(".")[0]), {}).setdefault(name, {})[int(first)] = parts[key]
    return {
        step: {name: np.concatenate([rows[first] for first in sorted(rows)]) for name, rows in batch.items()}
        for step, batch in steps.items()
    }


def write_config(folder: Path, corpus: Path) -> list[str]:
    """A config of the tiny run in `folder`, and the command that trains it there."""
    lines = ["from pathlib import Path", "from tests.train.tiny import run_config", "def get_config():"]
    (folder / "tiny_config.py").write_text("\n".join([*lines, f"    return run_config(Path({str(corpus)!r}))"]))
    return [sys.executable, "-m", "tests.train.mishaps", "--config", "tiny_config.py"]


def bits(losses: dict[int, float]) -> dict[int, str]:
    """Losses to the last bit."""
    return {step: float(value).hex() for step, value in losses.items()}


def last_step(run_dir: Path) -> int:
    """The newest step in metrics.jsonl."""
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]


if __name__ == "__main__":
    with_mishaps()
    run_command(main.run)

"""A run's small files beside its checkpoints: config, metrics, tokenizer, report.

A pod's disk goes with the pod, and what is on it: the metrics so far, and at the end the tokenizer and the config that
an export asks for. Where checkpoint.path names another place for the checkpoints, process 0 keeps a copy of the rest
of the run folder in PATH/run, and a run that goes on without its folder has it from there.
"""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from train.config import Config
from train.meeting import Processes
from train.tiers import PARTIAL, open_folder, whole_steps

SECONDS = 60.0  # between two copies
LAST_WORDS = 120.0  # seconds that a copy under way has at the end
METRICS = "metrics.jsonl"
LEFT_OUT = ("checkpoints", "run.lock")


@contextlib.contextmanager
def kept_with_checkpoints(processes: Processes, config: Config) -> Iterator[None]:
    """Within it the run folder is copied now and then, and once more at the end. Without checkpoint.path: nothing.

    A copy that fails is told and ends nothing. Errors: OSError where the earlier copy cannot be read.
    """
    if not (processes.chief and config.checkpoint.path):
        yield
        return
    mirror = Mirror(Path(config.run_dir), open_folder(config.checkpoint.path))
    if mirror.fetch():
        print(f"{config.run_dir} goes on from its copy in {mirror.copies}", flush=True)
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(SECONDS):
            mirror.copy()

    thread = threading.Thread(target=repeat, daemon=True, name="run folder copy")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(LAST_WORDS)
        if not thread.is_alive():
            mirror.copy()


class Mirror:
    """The files of a run folder and their copies in `run` beside the checkpoints."""

    def __init__(self, run_dir: Path, checkpoints: epath.Path):
        self.run_dir, self.copies, self._checkpoints = run_dir, checkpoints / "run", checkpoints
        self._copied: dict[Path, tuple[int, int]] = {}  # mtime and size of what was
        self._failed = False

    def fetch(self) -> bool:
        """Brings the copies here where they tell of more than the run folder; whether they did.

        Where no checkpoint is left the run begins anew, and the copies are of another.
        """
        try:
            copied, here = self.copies / METRICS, self.run_dir / METRICS
            if not whole_steps(self._checkpoints) or not copied.exists():
                return False
            if here.exists() and here.stat().st_size >= copied.stat().length:
                return False
            for path in sorted(files_of(self.copies), key=lambda path: path.name == METRICS):  # last: all are here
                put(path, epath.Path(self.run_dir / path.relative_to(self.copies)))
        except Exception as error:  # every file system has its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise OSError(f"the run's files in {self.copies} could not be read ({reason}): start again") from error
        return True

    def copy(self) -> None:
        """Copies what has changed. The first failure in a row is told."""
        try:
            for path in files_of(epath.Path(self.run_dir)):
                about = Path(path).stat()
                now = (about.st_mtime_ns, about.st_size)
                if self._copied.get(Path(path)) != now:
                    put(path, self.copies / path.relative_to(self.run_dir))
                    self._copied[Path(path)] = now
            self._failed = False
        except Exception as error:
            if not self._failed:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                print(f"warning: the run folder could not be copied to {self.copies}: {reason}", file=sys.stderr)
            self._failed = True


def files_of(folder: Any) -> Iterator[Any]:
    """The files in a folder and those within it, but for checkpoints and what is not whole."""
    for path in folder.iterdir():
        if path.name in LEFT_OUT or path.name.startswith(".") or path.name.endswith((PARTIAL, ".tmp")):
            continue
        if path.is_dir():
            yield from files_of(path)
        else:
            yield path


def put(source: Any, target: Any) -> None:
    """Copies a file so that the target is whole or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if "://" in str(target):
        source.copy(target, overwrite=True)
        return
    partial = target.parent / (target.name + PARTIAL)
    source.copy(partial, overwrite=True)
    partial.replace(target)

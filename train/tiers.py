"""Folders that checkpoints lie in: which are whole, copies from a fast folder to a durable one, room on the disk.

A folder of a step is whole when it has its name; on object stores, where a folder cannot be renamed, when it holds the
file that Orbax writes last. Paths may be any that `etils.epath` knows (`gs://` needs the package gcsfs).
"""

import shutil
import threading
from pathlib import Path
from typing import Any

from etils import epath
from orbax.checkpoint import v1 as ocp

COMMITTED = "commit_success.txt"  # Orbax's mark of a whole folder on an object store
GIB = 1 << 30
ROOM = 1.2  # times the size of a checkpoint that should be free
PARTIAL = ".partial"  # ending of a copy that is not whole


def open_folder(path: str | Path) -> epath.Path:
    """The folder, made where it is missing; from the root, as Orbax wants it, where it is not of an object store.

    Errors: ValueError where it cannot be reached or made.
    """
    try:
        folder = epath.Path(path if "://" in str(path) else Path(path).resolve())
        folder.mkdir(parents=True, exist_ok=True)
    except Exception as error:  # every file system has its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"checkpoints cannot be kept in {path} ({reason}): set checkpoint.path or run_dir") from error
    return folder


def whole_steps(folder: epath.Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, newest first."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    steps = [int(name) for name in names if name.isdigit()]
    if "://" in str(folder):
        steps = [step for step in steps if (folder / str(step) / COMMITTED).exists()]
    return sorted(steps, reverse=True)


def remove_half_written(folder: epath.Path) -> None:
    """Takes away what a kill during a save or a copy left."""
    if folder.exists():
        for path in folder.iterdir():
            if path.name.endswith((".orbax-checkpoint-tmp", PARTIAL)):
                path.rmtree(missing_ok=True)


def set_aside(where: epath.Path) -> epath.Path:
    """Renames a checkpoint that cannot be read, so that it is neither taken for whole nor lost."""
    number = 0
    while (there := where.parent / f"{where.name}.unreadable{number or ''}").exists():
        number += 1
    where.rename(there)
    return there


def lack_of_room(folder: epath.Path, needed: int) -> str:
    """How much is free in a folder where `needed` bytes hardly fit, in words; else ""."""
    free = free_bytes(folder)
    if free is None or free >= ROOM * needed:
        return ""
    return f"{free / GIB:.2f} GiB are free in {folder} and {needed / GIB:.2f} GiB needed"


def free_bytes(folder: epath.Path) -> int | None:
    """Room on the disk of a folder; None where there is no such thing."""
    return None if "://" in str(folder) else shutil.disk_usage(folder).free


def unwritten(folder: epath.Path, step: int, error: Exception) -> OSError:
    """The one-line error of a checkpoint that could not be written: its reason and what to do."""
    reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
    return OSError(
        f"the checkpoint of step {step} could not be written to {folder}: {reason}; make room or fix the "
        "folder and run the same command: it resumes from the newest whole checkpoint"
    )


def unreadable(where: epath.Path, error: Exception) -> ValueError:
    """The one-line error of a checkpoint whose files cannot be read."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ValueError(f"checkpoint {where} could not be read ({reason})")


def about(where: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(whose a checkpoint is: its identity, where it stands in the data); ValueError where it cannot be read."""
    try:
        items = ocp.load_checkpointables(where, {"meta": None, "data": None})
        return dict(items["meta"]["identity"]), dict(items["data"])
    except Exception as error:
        raise unreadable(where, error) from error


class Copier:
    """Copies whole checkpoints to the durable folder in a thread, one at a time, and keeps the newest `keep` there."""

    def __init__(self, source: epath.Path, target: epath.Path, keep: int):
        self._source, self._target, self._keep = source, target, keep
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.step: int | None = None  # of the copy under way
        self.failed = 0  # copies in a row

    def start(self, step: int) -> None:
        """Begins the copy of a whole checkpoint; first waits for the one under way.

        Errors: OSError where that one failed.
        """
        self.wait()
        self.step = step
        self._thread = threading.Thread(target=self._copy, args=(step,), name="checkpoint copy")
        self._thread.start()

    def wait(self) -> None:
        """Returns when the copy under way is whole.

        Errors: OSError where it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = self.step = None
        error, self._error = self._error, None
        if error is not None:
            raise OSError(f"a checkpoint could not be copied to {self._target}: {error}") from error

    def _copy(self, step: int) -> None:
        try:
            copy_whole(self._source / str(step), self._target / str(step))
            self.failed = 0
            for old in whole_steps(self._target)[self._keep :]:
                (self._target / str(old)).rmtree()
        except Exception as error:  # told by the next `wait`
            self._error, self.failed = error, self.failed + 1


def copy_whole(source: epath.Path, target: epath.Path) -> None:
    """Copies a folder so that the target has its name only when it is whole."""
    remote = "://" in str(target)
    place = target if remote else target.parent / (target.name + PARTIAL)
    place.rmtree(missing_ok=True)
    _copy_folder(source, place)
    if remote:
        (place / COMMITTED).write_text("")
    else:
        target.rmtree(missing_ok=True)
        place.rename(target)


def _copy_folder(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy_folder(path, target / path.name)
        else:
            path.copy(target / path.name, overwrite=True)

"""The worker process of `data.engine.LocalPool`: answers tasks on a socket.

A fresh interpreter that imports only what a task's function needs. (multiprocessing's spawn would import the parent's
`__main__` again, which for `train.main` is all of JAX in every worker.)
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PARENT_CHECK_SECONDS = 0.2  # how long a worker may outlive a killed parent
WORKERS = "SLUICE_WORKERS"  # in the environment: how many processes work beside this one, itself counted in


def num_workers() -> int:
    """How many processes share what is rationed, such as requests to one server."""
    return int(os.environ.get(WORKERS, "1"))


def main(descriptor: int, parent: int) -> None:
    """Answer tasks until the pipe closes.

    A task is (function bytes | None for the one before, shard bytes, how many workers there are); an answer is (result
    bytes | None, failure | None).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=die_with_parent, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    function: Callable[[Any], Any] | None = None
    result: bytes | None
    trouble: tuple[str, int | None, str] | None
    while True:
        try:
            function_bytes, shard_bytes, workers = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        os.environ[WORKERS] = str(workers)
        try:
            if function_bytes is not None:
                function = pickle.loads(function_bytes)
            assert function is not None
            result, trouble = pickle.dumps(function(pickle.loads(shard_bytes))), None
        except Exception as error:
            result, trouble = None, failure(error)
        try:
            connection.send((result, trouble))
        except (BrokenPipeError, ConnectionResetError):
            return


def failure(error: BaseException) -> tuple[str, int | None, str]:
    """(one line, errno, traceback) of an error: what crosses the process boundary."""
    text = " ".join(str(error).split()) or "no message"
    line = text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
    return line, getattr(error, "errno", None), traceback.format_exc()


def die_with_parent(parent: int) -> None:
    """End this process when its parent is another than this one."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)

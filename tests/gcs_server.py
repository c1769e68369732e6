"""A local Cloud Storage server, for tests of `gs://`: gcp-storage-emulator, and what it lacks for tensorstore.

    python -m tests.gcs_server 9023

Real Cloud Storage numbers every version of an object. It says the number with each download, and refuses a write or a
delete that asks for another version than there is (cloud.google.com/storage/docs/request-preconditions): that is how
tensorstore's databases keep two writers apart.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BUCKET = "mine"


def variables(port: int) -> dict[str, str]:
    """What makes gcsfs and tensorstore ask the server on this port."""
    address = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_CLOUD_PROJECT": "tests",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    }


def generation_of(storage: Any, bucket: str, name: str) -> str:
    """The number of an object's version; "0" where there is none."""
    from gcp_storage_emulator.exceptions import NotFound

    try:
        return str(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return "0"


def with_generations(handler: Callable[..., None], lock: threading.Lock) -> Callable[..., None]:
    """A handler of requests that minds the versions of objects."""

    def handle(request: Any, response: Any, storage: Any) -> None:
        bucket, query = request.params.get("bucket_name"), request.query
        name = request.params.get("object_id") or query.get("name", [None])[0]
        with lock:
            found = generation_of(storage, bucket, name) if bucket and name else "0"
            wanted = query.get("ifGenerationMatch", [found])[0]
            unwanted = query.get("ifGenerationNotMatch", [""])[0]
            if wanted != found or unwanted == found:
                read = request.method == "GET"
                response.status = (
                    HTTPStatus.NOT_MODIFIED if read and wanted == found else HTTPStatus.PRECONDITION_FAILED
                )
                return
            handler(request, response, storage)
            if found != "0" and request.method == "GET":
                response["x-goog-generation"] = found

    return handle


def serve(port: int) -> None:
    """Serves until the process ends."""
    from gcp_storage_emulator import server

    lock = threading.Lock()
    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            handlers[method] = with_generations(handler, lock)
    server.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET).start()
    print("serving", flush=True)
    threading.Event().wait()


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables in the environment, within."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def gcs_server() -> Iterator[str]:
    """The URL of an empty bucket, on a server in a process of its own that this process and its children ask."""
    gcsfs = pytest.importorskip("gcsfs", reason="no gcsfs: pip install gcsfs gcp-storage-emulator")
    pytest.importorskip("gcp_storage_emulator", reason="no server: pip install gcsfs gcp-storage-emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.gcs_server", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == "serving\n"
            with environment(variables(port)):
                gcsfs.GCSFileSystem.clear_instance_cache()
                yield f"gs://{BUCKET}"
                gcsfs.GCSFileSystem.clear_instance_cache()
        finally:
            server.kill()


if __name__ == "__main__":
    serve(int(sys.argv[1]))

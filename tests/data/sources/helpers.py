"""What the source tests share: run a source, and the servers and files that they need."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from data.document import Document, Dropped


def read(source: Any) -> tuple[list[Document], list[Dropped]]:
    """(documents, drops) of every shard; shards must be JSON values and ids unique."""
    documents: list[Document] = []
    drops: list[Dropped] = []
    for shard in json.loads(json.dumps(list(source.shards()))):
        for item in source.documents(shard):
            (documents if isinstance(item, Document) else drops).append(item)  # type: ignore[arg-type]
    ids = [*(document.id for document in documents), *(drop.document.id for drop in drops)]
    twice = sorted(name for name, count in Counter(ids).items() if count > 1)
    assert not twice, f"ids that are not unique among what is kept and dropped: {twice[:5]}"
    for document in documents:
        assert document.source == source.name and document.text.strip()
        document.text.encode()
        json.dumps(document.meta)
    for drop in drops:
        assert drop.drop.reason and drop.step == "read"
        drop.document.text.encode()
        json.dumps(drop.document.meta)
    return documents, drops


def reasons(drops: list[Dropped]) -> dict[str, int]:
    """How often each reason was given."""
    counts: dict[str, int] = {}
    for dropped in drops:
        counts[dropped.drop.reason] = counts.get(dropped.drop.reason, 0) + 1
    return counts


@contextmanager
def serve(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A local HTTP server whose GETs (and HEADs) are handled by `answer`; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def reply(
    handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, kind: str = "text/html", **more: str
) -> None:
    """Send one whole answer."""
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in more.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)

"""Requests to one server keep one pace, however many workers make them."""

from __future__ import annotations

import time
from functools import partial
from http.server import BaseHTTPRequestHandler

import pytest

from data.engine import LocalPool
from data.sources.http_fetch import HttpClient, HttpLimits, wait_turn
from data.worker import num_workers
from tests.data.sources.helpers import reply, serve

RATE = 20.0  # requests a second


def fetch(shard: int, *, address: str) -> int:
    """Some requests; how many workers share the pace."""
    client = HttpClient("test (me@uni.edu)", HttpLimits(requests_per_second=RATE))
    for number in range(10):
        assert client.get(f"{address}/{shard}/{number}") == b"here"
    return num_workers()


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_the_pace(workers: int) -> None:
    times: list[float] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        times.append(time.monotonic())
        reply(handler, b"here")

    with serve(answer) as address:
        found = LocalPool(workers=workers).map_shards(partial(fetch, address=address), range(6), label="fetch")
    assert found == [workers] * 6 and len(times) == 60
    times.sort()
    assert times[-1] - times[0] >= (60 - workers) / RATE - workers / RATE  # the first of each does not wait


def test_each_host_has_turns_of_its_own() -> None:
    start = time.monotonic()
    for host in ("a.example", "b.example", "a.example"):
        wait_turn(host, 0.3)
    assert 0.29 < time.monotonic() - start < 0.6
    with pytest.raises(ValueError, match="must be positive"):
        HttpLimits(requests_per_second=0.0)

"""What a cluster costs and how cost grows: `python -m tests.bench.engine [--shard-docs N] [--rounds N]`.

The same stages (cleaning, exact and near dedup) over the same shards, on the local pool with two workers and on a Ray
cluster of three nodes on this machine (a head that only schedules, two nodes with one CPU each), in turns. Documents
are real sentences, a tenth of them edited copies. `ray_overhead` is the median of Ray's time over the pool's, less
one, the session's start left out and printed apart. Then the local pool takes 1, 4 and 16 times a smaller corpus:
`growth_exponent` is the slope of log time over log size, 1 for a cost that grows as the data does. Ray runs its
workers at a niceness of 15, so that any other work on the machine slows them and not the pool.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from data.clean.recipes import prose
from data.clean.stage import Clean
from data.dedup.exact import ExactDedup
from data.dedup.near import NearDedup
from data.engine import Engine, LocalPool
from data.engine_ray import Ray
from data.tables import write_documents
from tests.bench.clean import english_documents
from tests.bench.dedup import make_documents, split_sentences

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
STAGES = (Clean(default=prose()), ExactDedup(), NearDedup(memory_bytes=1 << 28))


def make_shard(folder: Path, count: int, number: int) -> str:
    """Write one shard of documents; its path."""
    sentences = json.loads((folder / "sentences.json").read_text(encoding="utf-8"))
    path = folder / f"{number:05d}.parquet"
    write_documents(path, make_documents(sentences, number * count, count, 0.1))
    return str(path)


def make_corpus(folder: Path, sentences: Sequence[str], shards: int, documents: int) -> list[Path]:
    """Shards of as many documents each."""
    folder.mkdir(parents=True)
    (folder / "sentences.json").write_text(json.dumps(sentences), encoding="utf-8")
    made = LocalPool(workers=WORKERS).map_shards(
        partial(make_shard, folder, documents), list(range(shards)), label="make documents"
    )
    return [Path(path) for path in made]


def run_stages(paths: Sequence[Path], output: Path, engine: Engine) -> dict[str, float]:
    """Seconds of each stage."""
    took = {}
    for stage in STAGES:
        start = time.monotonic()
        stage.run(paths, output / stage.name, engine)
        paths = sorted((output / stage.name / "kept").glob("*.parquet"))
        took[stage.name] = time.monotonic() - start
    return took


@contextmanager
def three_nodes() -> Iterator[str]:
    """The address of a cluster of a head without CPUs and two nodes of one CPU, on this machine."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    store = {"object_store_memory": 100 << 20}  # bytes
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    try:
        for _ in range(WORKERS):
            cluster.add_node(num_cpus=1, **store)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def overhead(folder: Path, sentences: Sequence[str], documents: int, rounds: int) -> dict[str, Any]:
    """Print and return Ray's time beside the pool's, round by round."""
    paths = make_corpus(folder / "overhead", sentences, 2 * WORKERS, documents)
    ratios, pool_times, ray_times, starts = [], [], [], []
    with three_nodes() as address:
        for number in range(rounds):
            with LocalPool(workers=WORKERS).session() as pool:
                pool_times.append(run_stages(paths, folder / f"pool{number}", pool))
            begin = time.monotonic()
            with Ray(address=address, ship_code=False).session(folder) as cluster:
                starts.append(time.monotonic() - begin)
                ray_times.append(run_stages(paths, folder / f"ray{number}", cluster))
            ratios.append(sum(ray_times[-1].values()) / sum(pool_times[-1].values()))
    print(f"{2 * WORKERS} shards of {documents:,} documents, {WORKERS} workers, {rounds} rounds, medians in seconds")
    print(f"{'stage':<12}{'local pool':>12}{'Ray':>10}")
    for name in pool_times[0]:
        pool_seconds, ray_seconds = (statistics.median(t[name] for t in times) for times in (pool_times, ray_times))
        print(f"{name:<12}{pool_seconds:>12.2f}{ray_seconds:>10.2f}")
    joining = statistics.median(starts)
    print(f"Ray over the pool: {[round(ratio, 3) for ratio in ratios]}; joining the cluster {joining:.1f} s")
    clean = statistics.median(times["clean"] for times in pool_times) * WORKERS / (2 * WORKERS)
    print(f"a shard is {clean:.1f} s of work in the first stage")
    return {
        "ray_overhead": round(statistics.median(ratios) - 1, 3),
        "join_seconds": round(statistics.median(starts), 1),
    }


def growth(folder: Path, sentences: Sequence[str], documents: int) -> dict[str, Any]:
    """Print and return how the time of the stages grows with 1, 4 and 16 times the data."""
    sizes, times = (1, 4, 16), []
    for size in sizes:
        paths = make_corpus(folder / f"growth{size}", sentences, WORKERS * size, documents)
        with LocalPool(workers=WORKERS).session() as pool:
            run_stages(paths[:WORKERS], folder / f"warm{size}", pool)
            times.append(run_stages(paths, folder / f"size{size}", pool))
    exponents = {name: _slope(sizes, [t[name] for t in times]) for name in times[0]}
    exponents["all"] = _slope(sizes, [sum(t.values()) for t in times])
    print(f"\n{'documents':>12}" + "".join(f"{name:>14}" for name in times[0]))
    for size, took in zip(sizes, times):
        print(f"{WORKERS * size * documents:>12,}" + "".join(f"{seconds:>12.2f} s" for seconds in took.values()))
    print(
        f"{'exponent':>12}"
        + "".join(f"{exponents[name]:>14.3f}" for name in times[0])
        + f"   all {exponents['all']:.3f}"
    )
    return {"growth_exponent": round(exponents["all"], 3)}


def _slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Of the least-squares line through (log size, log seconds)."""
    x, y = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shard-docs", type=int, default=16_000, help="of the overhead: 8 to 10 s of work")
    parser.add_argument("--growth-docs", type=int, default=1_000, help="of a shard where the data grows")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sentences = split_sentences(english_documents(1000))
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            import ray  # noqa: F401
        except ImportError:
            result["missing"] = ["ray"]
            print("ray is missing: pip install 'ray>=2.40'")
        else:
            result |= overhead(folder, sentences, arguments.shard_docs, arguments.rounds)
        result |= growth(folder, sentences, arguments.growth_docs)
    print(json.dumps(result))


if __name__ == "__main__":
    from tests.bench import engine  # by its real name, so that workers find its functions

    engine.main()

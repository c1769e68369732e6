"""Connected components as rounds of file shuffles, for more documents than one process should label.

Alternating large-star and small-star (Kiveris et al. 2014, "Connected Components in MapReduce and Beyond"): in every
round each node hands its neighbours to the smallest of them, until all edges are stars around the smallest node of
their component. A round is two shuffles; each writes sorted runs that are read range by range (data.dedup.runs), so the
memory of a worker is bounded and a killed run goes on with the runs that are whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data.dedup.rows import load_array, save_array
from data.dedup.runs import Range, plan_ranges, sorted_pairs, write_run
from data.dedup.shingles import mix64
from data.engine import Engine

VERSION = 1

MAX_ROUNDS = 100  # the bound is O(log^2 n) rounds; real collections take under ten
_SHIFT = np.uint64(16)  # row numbers (below 2^48) spread over the key space that ranges are cut from


def label_by_rounds(
    edge_files: Sequence[Path],
    count: int,
    path: Path,
    memory_bytes: int,
    engine: Engine,
    *,
    max_rounds: int = MAX_ROUNDS,
) -> np.ndarray:
    """As `data.dedup.components.label_components`, with the work shared by the engine.

    Raises ValueError when the rounds do not come to an end: something is wrong then, and no partial answer is given.
    """
    scratch = path.with_name(path.name + ".rounds")
    tasks = [(str(file), str(scratch / "start" / f"{number:05d}")) for number, file in enumerate(edge_files)]
    engine.map_shards(_spread, tasks, label="components: start")
    runs = [Path(folder) for _, folder in tasks]
    before = None
    for number in range(max_rounds):
        for name in ("large", "small"):
            folder = scratch / f"{number:03d}-{name}"
            runs, now = _star(runs, folder, memory_bytes, engine, label=f"components: round {number + 1}, {name} star")
        if now == before:
            return _labels(runs, count, path, memory_bytes)
        before = now
    raise ValueError(
        f"connected components did not settle in {max_rounds} rounds: the runs in {scratch} may be damaged; remove the "
        "folder and build again"
    )


def _star(
    runs: Sequence[Path], folder: Path, memory_bytes: int, engine: Engine, *, label: str
) -> tuple[list[Path], tuple[int, int]]:
    """One shuffle: new runs, and (number of edges, sum of their hashes), which stay the same only when the edges do."""
    large = folder.name.endswith("large")
    ranges = plan_ranges(runs, [0] * len(runs), memory_bytes)
    tasks = [(piece, str(folder / f"{number:05d}")) for number, piece in enumerate(ranges)]
    sums = engine.map_shards(partial(_stars_of_range, large=large), tasks, label=label)
    total = sum(edges for edges, _ in sums), sum(value for _, value in sums) % (1 << 64)
    return [Path(name) for _, name in tasks], total


def _spread(task: tuple[str, str]) -> int:
    """The edges of one file as a run for the large star: both directions."""
    file, folder = task[0], Path(task[1])
    if not (folder / "keys.npy").exists():
        edges = np.asarray(load_array(Path(file))).reshape(-1, 2)
        _write(folder, edges[:, 0], edges[:, 1], both=True)
    return 0


def _stars_of_range(task: tuple[Range, str], *, large: bool) -> tuple[int, int]:
    """The new edges of the nodes in one range; their number and the sum of their hashes."""
    piece, folder = task[0], Path(task[1])
    if (folder / "sum.npy").exists():
        edges, value = load_array(folder / "sum.npy").tolist()
        return edges, value
    keys, neighbours = sorted_pairs(piece)
    nodes = (keys >> _SHIFT).astype(np.int64)
    first = np.flatnonzero(np.concatenate(([True], nodes[1:] != nodes[:-1]))) if len(nodes) else np.empty(0, np.int64)
    group = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(nodes))))
    centres = np.minimum(neighbours[first], nodes[first]) if len(nodes) else nodes  # neighbours are sorted in a group
    if large:  # every larger neighbour of a node to the smallest around it
        moved = neighbours > nodes
        one, other = neighbours[moved], centres[group][moved]
    else:  # a node and its smaller neighbours to the smallest of them; all neighbours here are smaller
        one = np.concatenate((neighbours, nodes[first]))
        other = np.concatenate((centres[group], centres))
    real = one != other
    edges = np.unique(np.stack((one[real], other[real]), axis=1), axis=0)
    _write(folder, edges[:, 0], edges[:, 1], both=not large)
    mixed = mix64(mix64(edges[:, 0].astype(np.uint64)) + edges[:, 1].astype(np.uint64))
    found = len(edges), int(mixed.sum(dtype=np.uint64))
    save_array(folder / "sum.npy", np.array(found, np.uint64))
    return found


def _write(folder: Path, one: np.ndarray, other: np.ndarray, *, both: bool) -> None:
    """A run of edges: keyed by each end (`both`), or by the larger end alone."""
    if both:
        nodes, neighbours = np.concatenate((one, other)), np.concatenate((other, one))
    else:
        nodes, neighbours = np.maximum(one, other), np.minimum(one, other)
    write_run(folder, nodes.astype(np.uint64) << _SHIFT, neighbours)


def _labels(runs: Sequence[Path], count: int, path: Path, memory_bytes: int) -> np.ndarray:
    """The smallest row of each row's component, from stars around it."""
    labels = np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=(count,))
    step = max(memory_bytes // 64, 1)
    for low in range(0, count, step):
        labels[low : low + step] = np.arange(low, min(low + step, count))
    for run in runs:
        keys, places = load_array(run / "keys.npy")[0], load_array(run / "places.npy")[0]
        for low in range(0, len(keys), step):
            nodes = (np.asarray(keys[low : low + step]) >> _SHIFT).astype(np.int64)
            neighbours = np.asarray(places[low : low + step]).astype(np.int64)
            inner = neighbours < nodes  # runs hold both directions
            labels[nodes[inner]] = neighbours[inner]
    labels.flush()
    return labels

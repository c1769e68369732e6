"""Which documents must be looked at together: connected components of the candidate pairs.

Components only share out the work: a verdict never follows from a component, only from a verified pair. The table of
labels (8 bytes a document) is a memory-mapped file, and pairs are read in bounded pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data.dedup.rows import load_array
from data.dedup.runs import Range, groups, plan_ranges, write_run
from data.dedup.shingles import mix64

VERSION = 1

_BYTES_PER_EDGE = 128  # peak bytes a pair while a piece of pairs is joined
_DOCUMENTS_PER_TASK = 1 << 15  # colliding documents that one task verifies: some seconds of work
_VERIFY_FACTOR = 32  # a document that is verified takes about 2 KiB: 32 times a pair that is sorted


def star_edges(piece: Range) -> np.ndarray:
    """Pairs that connect all rows with an equal key: int64 [pairs, 2], the smallest row of each group first."""
    keys, rows = groups(piece)
    new = np.ones(len(keys), bool)
    new[1:] = keys[1:] != keys[:-1]
    first = rows[np.flatnonzero(new)][np.cumsum(new) - 1] if len(keys) else rows
    return np.stack([first[~new], rows[~new]], axis=1)


def label_components(edge_files: Sequence[Path], count: int, path: Path, memory_bytes: int) -> np.ndarray:
    """The smallest row of each row's component, as a memory-mapped int64 [count] array in `path`.

    edge_files: .npy arrays [pairs, 2] of rows.
    """
    labels = np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=(count,))
    step = max(memory_bytes // _BYTES_PER_EDGE, 1)
    for low in range(0, count, step):
        labels[low : low + step] = np.arange(low, min(low + step, count))
    for file in edge_files:
        edges = load_array(file)
        for low in range(0, len(edges), step):
            _join(labels, np.asarray(edges[low : low + step]))
    for low in range(0, count, step):
        labels[low : low + step] = _roots(labels, np.arange(low, min(low + step, count)))
    labels.flush()
    return labels


def plan_tasks(labels: np.ndarray, scratch: Path, memory_bytes: int) -> list[Range]:
    """Ranges whose groups are the components of two or more documents; several components a task.

    A group may name its smallest row more than once.
    """
    runs = []
    step = max(memory_bytes // _BYTES_PER_EDGE, 1)
    for number, low in enumerate(range(0, len(labels), step)):
        part = np.asarray(labels[low : low + step])
        rows = np.arange(low, low + len(part))
        moved = part != rows
        roots = np.unique(part[moved])  # a root is in its component too, but most documents are alone in theirs
        runs.append(scratch / f"{number:05d}")
        keys = mix64(np.concatenate((part[moved], roots)).astype(np.uint64))
        write_run(runs[-1], keys, np.concatenate((rows[moved], roots)))
    return plan_ranges(runs, [0] * len(runs), memory_bytes // _VERIFY_FACTOR, pairs_per_task=_DOCUMENTS_PER_TASK)


def _roots(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found = labels[rows]
    while True:
        above = labels[found]
        if np.array_equal(above, found):
            return found
        found = above


def _join(labels: np.ndarray, edges: np.ndarray) -> None:
    """Point the roots of every connected set of edges to the smallest of them."""
    roots = _roots(labels, edges.ravel())
    nodes, places = np.unique(roots, return_inverse=True)
    one, other = places.reshape(-1, 2).T
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph, directed=False)
    least = np.full(component.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least, component, nodes)
    labels[nodes] = least[component]
    labels[edges.ravel()] = _roots(labels, edges.ravel())  # short paths

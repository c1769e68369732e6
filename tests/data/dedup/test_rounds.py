"""Components by rounds of file shuffles are those of one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.dedup.components import label_components
from data.dedup.rounds import label_by_rounds
from data.dedup.rows import save_array
from data.engine import LocalPool

COUNT = 3000


def edge_files(folder: Path, kind: str) -> list[Path]:
    random = np.random.default_rng(3)
    edges = {
        "sparse": random.integers(0, COUNT, (1200, 2)),
        "path": np.stack((np.arange(COUNT - 1), np.arange(1, COUNT)), axis=1),  # the worst case: one long chain
        "shuffled path": (order := random.permutation(COUNT))[np.stack((np.arange(999), np.arange(1, 1000)), axis=1)],
        "none": np.empty((0, 2), np.int64),
    }[kind]
    assert len(order) == COUNT
    paths = [folder / f"{number}.npy" for number in range(3)]
    for number, path in enumerate(paths):
        save_array(path, edges[number::3].astype(np.int64))
    return paths


@pytest.mark.parametrize("kind", ["sparse", "path", "shuffled path", "none"])
def test_the_same_labels_as_one_process_finds(tmp_path: Path, kind: str) -> None:
    files = edge_files(tmp_path, kind)
    expected = label_components(files, COUNT, tmp_path / "one.npy", 1 << 20)
    small = 64 * 1000 if kind == "sparse" else 1 << 20  # bytes: 1,000 pairs a range
    found = label_by_rounds(files, COUNT, tmp_path / "rounds.npy", small, LocalPool(workers=1))
    assert np.array_equal(expected, found)


def test_a_killed_run_goes_on_with_what_is_whole(tmp_path: Path) -> None:
    files = edge_files(tmp_path, "sparse")
    expected = np.array(label_by_rounds(files, COUNT, tmp_path / "a.npy", 1 << 20, LocalPool(workers=1)))
    label_by_rounds(files, COUNT, tmp_path / "b.npy", 1 << 20, LocalPool(workers=1))
    scratch = tmp_path / "b.npy.rounds"
    rounds = sorted(path.name for path in scratch.iterdir())
    for name in rounds[-3:-1]:  # as if killed two shuffles before the end
        for file in (scratch / name).rglob("*.npy"):
            file.unlink()
    again = label_by_rounds(files, COUNT, tmp_path / "b.npy", 1 << 20, LocalPool(workers=1))
    assert np.array_equal(expected, again)


def test_no_convergence_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did not settle in 2 rounds"):
        files = edge_files(tmp_path, "path")
        label_by_rounds(files, COUNT, tmp_path / "labels.npy", 1 << 20, LocalPool(workers=1), max_rounds=2)

"""A plan covers every pair of every document exactly once, in rows that hold seq_len pairs at most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data import pack
from data.pack import Plan, cached_plan, plan_rows, windows

PACKINGS: tuple[pack.Packing, ...] = ("first_fit", "concat_then_split")


def lengths(count: int, seed: int = 0) -> np.ndarray:
    """Ids a document: many short, a few much longer than a row, some empty (BOS and EOS only)."""
    rng = np.random.default_rng(seed)
    short = rng.lognormal(4.0, 1.2, count).astype(np.int64) + 2
    short[rng.random(count) < 0.02] = 2
    return short


def check_plan(plan: Plan, num_tokens: np.ndarray) -> None:
    covered: list[list[tuple[int, int]]] = [[] for _ in num_tokens]
    for row in range(plan.rows):
        first, last = plan.row_first[row : row + 2].tolist()
        assert first < last, "an empty row"
        assert plan.piece_length[first:last].sum() <= plan.seq_len
        for piece in range(first, last):
            assert plan.piece_length[piece] > 0
            covered[plan.piece_document[piece]].append((int(plan.piece_start[piece]), int(plan.piece_length[piece])))
    for pieces, count in zip(covered, num_tokens.tolist()):
        place = 0
        for start, length in sorted(pieces):
            assert start == place
            place += length
        assert place == count - 1
    assert plan.row_first[0] == 0 and plan.row_first[-1] == len(plan.piece_length)
    assert plan.window_first[0] == 0 and plan.window_first[-1] == plan.rows
    assert plan.pairs == int((num_tokens - 1).sum())


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("seq_len", [2, 7, 64, 257, 4096])
def test_every_pair_is_in_one_row_once(packing: pack.Packing, seq_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for limits in ((65_536, 1 << 24, 1024, 1024), (37, 300, 1, 4), (1, 1, 1, 1)):
        for name, limit in zip(("WINDOW_DOCUMENTS", "WINDOW_PAIRS", "WINDOW_ROWS", "OPEN_BINS"), limits):
            monkeypatch.setattr(pack, name, limit)
        for count in (0, 1, 2, 400):
            num_tokens = lengths(count)
            check_plan(plan_rows(num_tokens, seq_len, packing), num_tokens)


def test_first_fit_keeps_documents_whole_that_fit() -> None:
    num_tokens = lengths(3000)
    plan = plan_rows(num_tokens, 256, "first_fit")
    pieces = np.bincount(plan.piece_document, minlength=len(num_tokens))
    assert (pieces == -(-(num_tokens - 1) // 256)).all()


def test_first_fit_is_first_fit() -> None:
    plan = plan_rows(np.array([7, 5, 3, 12, 4, 2]) + 1, 10, "first_fit")
    rows = [plan.piece_document[a:b].tolist() for a, b in zip(plan.row_first[:-1], plan.row_first[1:])]
    # 7 opens a row, 5 another; 3 fills the first, which closes; 12 is a row of 10 and 2 in the second; 4 opens a row in
    # the first slot, where 2 finds room before the second row.
    assert rows == [[0, 2], [1, 3], [3], [4, 5]]


def test_concat_fills_every_row_but_the_last() -> None:
    num_tokens = lengths(5000)
    plan = plan_rows(num_tokens, 128, "concat_then_split")
    assert plan.rows == -(-int((num_tokens - 1).sum()) // 128)
    assert (np.add.reduceat(plan.piece_length, plan.row_first[:-1])[:-1] == 128).all()


@pytest.mark.parametrize("seq_len", [256, 2048])
def test_first_fit_fills_rows(seq_len: int) -> None:
    assert plan_rows(lengths(65_536), seq_len, "first_fit").fill > 0.98


def test_windows_are_bounded() -> None:
    pairs = lengths(200_000) - 1
    ranges = list(windows(pairs, 128))
    assert [first for first, _ in ranges[1:]] == [last for _, last in ranges[:-1]]
    assert ranges[0][0] == 0 and ranges[-1][1] == len(pairs)
    for first, last in ranges:
        assert last - first <= pack.WINDOW_DOCUMENTS
        assert last - first == 1 or pairs[first:last].sum() <= pack.WINDOW_PAIRS
    huge = np.array([5, 1 << 26, 5, 5])
    assert list(windows(huge, 128)) == [(0, 1), (1, 2), (2, 4)]


def test_rows_stay_within_their_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "WINDOW_DOCUMENTS", 100)
    num_tokens = lengths(950)
    for packing in PACKINGS:
        plan = plan_rows(num_tokens, 64, packing)
        assert len(plan.window_first) == 11
        for window in range(10):
            first, last = plan.row_first[plan.window_first[window : window + 2]]
            assert set((plan.piece_document[first:last] // 100).tolist()) == {window}


def test_a_plan_is_kept_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_tokens = lengths(1000)
    made = cached_plan(tmp_path, num_tokens, 64, "first_fit")
    assert len(list(tmp_path.iterdir())) == 1
    for other in ((lengths(1000, 1), 64, "first_fit"), (num_tokens, 65, "first_fit"), (num_tokens, 64, PACKINGS[1])):
        cached_plan(tmp_path, *other)  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(pack, "plan_rows", None)  # not planned again
    again = cached_plan(tmp_path, num_tokens, 64, "first_fit")
    assert "piece_document.npy" in Path("/proc/self/maps").read_text()
    for name in pack.ARRAYS:
        assert (getattr(made, name) == getattr(again, name)).all()


def test_a_damaged_plan_is_one_line_and_a_half_written_one_is_not_used(tmp_path: Path) -> None:
    num_tokens = lengths(100)
    cached_plan(tmp_path, num_tokens, 64, "first_fit")
    (folder,) = tmp_path.iterdir()
    folder.rename(tmp_path / f"{folder.name}.123.tmp")
    check_plan(cached_plan(tmp_path, num_tokens, 64, "first_fit"), num_tokens)
    (folder / "row_first.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"unreadable packing plan .*remove this folder"):
        cached_plan(tmp_path, num_tokens, 64, "first_fit")


def test_where_nothing_can_be_written_the_plan_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    num_tokens = lengths(100)
    check_plan(cached_plan(tmp_path / "file" / "plans", num_tokens, 64, "first_fit"), num_tokens)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loader.packing='best': expected 'first_fit' or 'concat_then_split'"):
        plan_rows(lengths(3), 64, "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"loader.seq_len=1"):
        plan_rows(lengths(3), 1, "first_fit")

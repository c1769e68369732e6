"""A batch is a pure function of (dataset, seed, step), and every token of every document is seen once an epoch."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import pack
from data.heldout_loader import heldout_batches, open_heldout
from data.loader import Loader, LoaderConfig, open_loader
from data.loader_stats import row_ranges
from data.row_order import permutation
from data.rows import Batch
from data.token_reader import open_tokens
from data.tokenizer import load_tokenizer
from data.tokenizer_train import train_tokenizer
from data.weights import EpochCap
from tests.data.token_data import SMALL, build, stdlib_documents

DOCUMENTS = stdlib_documents(25)
CONFIG = LoaderConfig(seq_len=64, global_batch_size=8)
PACKINGS: tuple[pack.Packing, ...] = ("first_fit", "concat_then_split")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dataset"), DOCUMENTS)


def same(left: Batch, right: Batch) -> bool:
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def segments(batch: Batch) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(row, inputs, targets, positions, loss_weights) of each segment, in order."""
    for row, ids in enumerate(batch["segment_ids"]):
        for segment in range(1, ids.max() + 1):
            where = ids == segment
            yield row, *(batch[name][row][where] for name in ("inputs", "targets", "positions", "loss_weights"))


def all_tokens(dataset: Path, split: str) -> dict[str, list[int]]:
    reader = open_tokens(dataset, split)
    return {
        doc_id: reader.document_ids(source, place).tolist()
        for source, index in reader.index.items()
        for place, doc_id in enumerate(reader.doc_ids(source, np.arange(index.documents)))
    }


def epoch(loader: Loader) -> list[tuple[str, int, list[int], list[int], list[int]]]:
    """(document, first pair, inputs, targets, positions) of every segment of the first epoch of every source."""
    found: list[tuple[str, int, list[int], list[int], list[int]]] = []
    for step in itertools.count():
        infos = loader.rows_of(step)
        if all(info.epoch for info in infos):
            return found
        batch = loader.batch(step)
        pieces = [(info.epoch, doc, start) for info in infos for doc, start in zip(info.doc_ids, info.starts)]
        for (number, doc, start), (_, inputs, targets, positions, _) in zip(pieces, segments(batch), strict=True):
            if number == 0:
                found.append((doc, start, inputs.tolist(), targets.tolist(), positions.tolist()))
    raise AssertionError


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_epoch_has_every_token_of_every_document_once_and_no_target_crosses(
    dataset: Path, packing: pack.Packing
) -> None:
    loader = open_loader(dataset, replace(CONFIG, packing=packing))
    expected = all_tokens(dataset, "train")
    seen: Counter[tuple[str, int]] = Counter()
    for doc, start, inputs, targets, positions in epoch(loader):
        tokens = expected[doc]
        assert inputs == tokens[start : start + len(inputs)]
        assert targets == tokens[start + 1 : start + 1 + len(inputs)]  # the document's own next tokens
        assert positions == list(range(len(inputs))) and len(inputs) <= 64
        seen.update((doc, start + place) for place in range(len(inputs)))
    assert set(seen.values()) == {1}
    assert set(seen) == {(doc, place) for doc, tokens in expected.items() for place in range(len(tokens) - 1)}


def test_padding_is_segment_0_without_loss(dataset: Path) -> None:
    loader = open_loader(dataset, CONFIG)
    padding = 0
    for step in range(40):
        batch = loader.batch(step)
        empty = batch["segment_ids"] == 0
        padding += int(empty.sum())
        assert (batch["loss_weights"] == ~empty).all()
        assert (batch["inputs"][empty] == 3).all() and (batch["targets"][empty] == 3).all()
        assert (batch["positions"][empty] == 0).all()
        assert (np.diff(empty.astype(int), axis=1) >= 0).all()  # at the end only
    assert padding


def test_dtypes_and_shapes(dataset: Path) -> None:
    for name, array in open_loader(dataset, CONFIG).batch(0).items():
        assert array.shape == (8, 64)
        assert array.dtype == (np.float32 if name == "loss_weights" else np.int32)


def test_the_global_stream_does_not_depend_on_processes_or_prefetch(dataset: Path) -> None:
    reference = open_loader(dataset, CONFIG)
    stream = [reference.batch(step) for step in range(51)]
    for count, prefetch in ((1, 0), (1, 1), (2, 2), (4, 3), (4, 0), (8, 16)):
        config = replace(CONFIG, prefetch=prefetch, cache_bytes=prefetch << 14)
        loaders = [open_loader(dataset, config, process_index=p, process_count=count) for p in range(count)]
        streams = [loader.iterate(0) for loader in loaders]
        for expected in stream:
            parts = [next(one) for one in streams]
            assert same({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, expected)
        for one in streams:
            one.close()


@pytest.mark.parametrize("prefetch", [0, 4])
def test_iteration_from_any_step_equals_batch(dataset: Path, prefetch: int) -> None:
    loader = open_loader(dataset, replace(CONFIG, prefetch=prefetch))
    for start in (0, 7, 1000, 10**9):
        batches = loader.iterate(start)
        for step in range(start, start + 4):
            assert same(next(batches), open_loader(dataset, CONFIG).batch(step))
        batches.close()


def test_closing_ends_the_prefetch_thread(dataset: Path) -> None:
    before = threading.active_count()
    batches = open_loader(dataset, replace(CONFIG, prefetch=3)).iterate()
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_an_unreadable_record_stops_the_iteration_with_its_line(dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    path = copy / "tokens" / "train" / "code-00000-of-00001.arrayrecord"
    content = bytearray(path.read_bytes())
    content[100_000:100_500] = bytes(500)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"code-00000-of-00001.arrayrecord: record .* build the dataset again"):
        for _ in zip(range(200), open_loader(copy, CONFIG).iterate()):
            pass


def test_epochs_visit_each_row_once_in_another_order(dataset: Path) -> None:
    loader = open_loader(dataset, replace(CONFIG, weights=(("prose", 1.0),)))
    rows = loader.stats.sources["prose"].rows
    infos = [info for step in range(3 * rows // 8 + 1) for info in loader.rows_of(step)]
    orders = [[info.plan_row for info in infos if info.epoch == number] for number in range(3)]
    for order in orders:
        assert sorted(order) == list(range(rows))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert loader.stats.sources["prose"].epochs(3 * rows) == pytest.approx(3)


def test_windows_are_shuffled_and_rows_stay_within_theirs(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "WINDOW_DOCUMENTS", 40)
    config = replace(CONFIG, weights=(("prose", 1.0),))
    loader = open_loader(dataset, config)
    plan = pack.plan_rows(open_tokens(dataset, "train").index["prose"].num_tokens, 64, "first_fit")
    assert len(plan.window_first) > 8
    infos = [info for step in range(2 * plan.rows // 8 + 1) for info in loader.rows_of(step)]
    orders = []
    for number in (0, 1):
        rows = [info.plan_row for info in infos if info.epoch == number]
        assert sorted(rows) == list(range(plan.rows))
        visited = np.searchsorted(plan.window_first, rows, "right").tolist()
        orders.append([window for window, _ in itertools.groupby(visited)])
        assert len(orders[-1]) == len(plan.window_first) - 1  # one visit each
        assert rows != sorted(rows)
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_the_seed_changes_the_order_only(dataset: Path) -> None:
    first, other = (open_loader(dataset, replace(CONFIG, seed=seed)) for seed in (0, 1))
    assert not same(first.batch(0), other.batch(0))
    assert sorted(map(str, epoch(first))) == sorted(map(str, epoch(other)))


def code_shares(loader: Loader, steps: range) -> np.ndarray:
    """The share of "code" in the tokens that are no padding, of every 1,000 rows in a row."""
    tokens, is_code = [], []
    for step in steps:
        tokens += (loader.batch(step)["segment_ids"] > 0).sum(1).tolist()
        is_code += [info.source == "code" for info in loader.rows_of(step)]
    total = np.concatenate([[0], np.cumsum(tokens)])
    code = np.concatenate([[0], np.cumsum(np.multiply(tokens, is_code))])
    return (code[1000:] - code[:-1000]) / (total[1000:] - total[:-1000])


@pytest.mark.parametrize("packing", PACKINGS)
def test_any_1000_rows_meet_the_weights_in_tokens(dataset: Path, packing: pack.Packing) -> None:
    loader = open_loader(dataset, replace(CONFIG, weights=(("code", 0.3), ("prose", 0.7)), packing=packing))
    assert np.abs(code_shares(loader, range(250)) - 0.3).max() < 0.003
    assert loader.stats.sources["code"].weight == pytest.approx(0.3)


def test_a_curriculum_changes_the_mixture_at_its_step(dataset: Path) -> None:
    config = replace(CONFIG, weights=(("code", 1.0),), changes=((50, (("code", 0.2), ("prose", 0.8))),))
    loader = open_loader(dataset, config)
    assert {info.source for step in range(50) for info in loader.rows_of(step)} == {"code"}
    assert np.abs(code_shares(loader, range(50, 250)) - 0.2).max() < 0.003
    parts = [open_loader(dataset, config, process_index=p, process_count=4) for p in range(4)]
    for step in (48, 49, 50, 51, 200):  # each opened there, as after a restart
        joined = [part.batch(step) for part in parts]
        assert same({name: np.concatenate([b[name] for b in joined]) for name in joined[0]}, loader.batch(step))
    seen = Counter(info.source for step in range(200) for info in loader.rows_of(step))
    for source, epochs in loader.planned_epochs(200).items():
        assert epochs * loader.stats.sources[source].rows == pytest.approx(seen[source])


def test_another_batch_size_goes_on_from_its_row_or_is_refused(dataset: Path) -> None:
    """Ten batches of 8 rows, then batches of 16: no row twice and none left out; a curriculum would move them."""
    before, after = open_loader(dataset, CONFIG), open_loader(dataset, replace(CONFIG, global_batch_size=16))
    after.begin(10, 80)
    for step in (10, 11):
        wide, narrow = after.batch(step), [before.batch(2 * step - 10), before.batch(2 * step - 9)]
        assert same(wide, {name: np.concatenate([part[name] for part in narrow]) for name in wide})
    for setting in (
        {"changes": ((15, (("code", 0.2), ("prose", 0.8))),)},
        {"epoch_cap": EpochCap(epochs=2, steps=30)},
    ):
        loader = open_loader(dataset, replace(CONFIG, global_batch_size=16, **setting))  # type: ignore[arg-type]
        loader.begin(10, 160)
        with pytest.raises(ValueError, match=rf"loader\.{next(iter(setting))} counts steps, and 10 steps of 16 rows"):
            loader.begin(10, 80)


def test_an_epoch_cap_holds_over_the_run(dataset: Path) -> None:
    config = replace(CONFIG, weights=(("code", 0.01), ("prose", 0.99)), epoch_cap=EpochCap(epochs=2, steps=300))
    epochs = open_loader(dataset, replace(config, epoch_cap=None)).planned_epochs(300)
    assert epochs["prose"] > 2.5
    assert open_loader(dataset, config).planned_epochs(300)["prose"] == pytest.approx(2, abs=0.02)
    with pytest.raises(ValueError, match="all sources hold only"):
        open_loader(dataset, replace(config, epoch_cap=EpochCap(epochs=2, steps=10_000)))


def test_default_weights_are_the_tokens(dataset: Path) -> None:
    stats = open_loader(dataset, CONFIG).stats
    total = sum(source.tokens for source in stats.sources.values())
    for source in stats.sources.values():
        assert source.weight == pytest.approx(source.tokens / total)
        assert source.epochs(stats.rows) == pytest.approx(1, abs=0.01)
    assert 0.9 < stats.fill <= 1


def test_a_row_has_one_source(dataset: Path) -> None:
    loader = open_loader(dataset, CONFIG)
    for step in range(30):
        for row, info in enumerate(loader.rows_of(step)):
            assert info.row == step * 8 + row
            assert {doc.split("/")[0] for doc in info.doc_ids} == {info.source}


def test_rows_of_names_the_documents_of_the_batch_on_every_process(dataset: Path) -> None:
    tokenizer, texts = load_tokenizer(dataset / "tokenizer"), {document.id: document.text for document in DOCUMENTS}
    loaders = [open_loader(dataset, CONFIG, process_index=p, process_count=2) for p in range(2)]
    assert loaders[0].rows_of(5) == loaders[1].rows_of(5)
    infos = loaders[1].rows_of(5)[4:]
    for row, inputs, *_ in segments(loaders[1].batch(5)):
        info = infos[row]
        assert tokenizer.decode(inputs.tolist()).strip("\ufffd") in "".join(texts[doc] for doc in info.doc_ids)


def test_skipped_rows_keep_their_place(dataset: Path) -> None:
    plain = open_loader(dataset, CONFIG)
    skip = row_ranges([*plain.rows_of(3), plain.rows_of(5)[2]])
    assert skip == ((24, 32), (42, 43))
    skipping = open_loader(dataset, replace(CONFIG, skip=skip))
    for step in range(8):
        batch, expected = skipping.batch(step), plain.batch(step)
        rows = {3: slice(0, 8), 5: slice(2, 3)}.get(step, slice(0, 0))
        expected["loss_weights"][rows] = 0
        assert same(batch, expected)


@pytest.mark.parametrize("packing", PACKINGS)
def test_held_out_rows_come_in_order_each_once_by_source(dataset: Path, packing: pack.Packing) -> None:
    expected = all_tokens(dataset, "heldout")
    bytes_of = Counter[str]()
    for document in DOCUMENTS:
        if document.meta["split"] == "heldout":
            bytes_of[document.source] += len(document.text.encode())
    config = replace(CONFIG, packing=packing, seed=5)
    for count in (1, 2):
        opened = [open_heldout(dataset, config, process_index=p, process_count=count) for p in range(count)]
        assert {source: rows.num_bytes for source, rows in opened[0].items()} == bytes_of
        for source in opened[0]:
            nats = Counter[tuple[int, int]]()
            weights = 0.0
            parts = [list(process[source].batches()) for process in opened]
            assert {len(part) for part in parts} == {opened[0][source].num_batches}
            for batch in itertools.chain(*parts):
                weights += batch["loss_weights"].sum()
                for _, inputs, targets, *_ in segments(batch):
                    nats.update(zip(inputs.tolist(), targets.tolist()))
            wanted = Counter[tuple[int, int]]()
            for doc, tokens in expected.items():
                if doc.startswith(source):
                    wanted.update(itertools.pairwise(tokens))
            assert nats == wanted
            assert weights == opened[0][source].num_targets == sum(wanted.values())


def test_held_out_is_the_same_whatever_the_training_order(dataset: Path) -> None:
    first = list(heldout_batches(dataset, CONFIG))
    other = list(heldout_batches(dataset, replace(CONFIG, seed=9, weights=(("code", 1.0),), skip=((0, 100),))))
    assert [source for source, _ in first] == [source for source, _ in other]
    assert all(same(a, b) for (_, a), (_, b) in zip(first, other))


def test_part_of_held_out_is_whole_documents_with_their_bytes(dataset: Path) -> None:
    whole = open_heldout(dataset, CONFIG)["prose"]
    part = open_heldout(dataset, CONFIG, max_bytes=whole.num_bytes // 3, batch_size=4)["prose"]
    index = open_tokens(dataset, "heldout").index["prose"]
    assert whole.num_bytes / 3 <= part.num_bytes < whole.num_bytes / 2
    assert part.num_bytes == index.num_bytes[: part.num_documents].sum()
    assert part.num_targets == (index.num_tokens[: part.num_documents] - 1).sum()
    batches = list(part.batches())
    assert sum(batch["loss_weights"].sum() for batch in batches) == part.num_targets
    assert batches[0]["inputs"].shape == (4, 64)


def test_loss_spans_reach_the_batch(tmp_path: Path) -> None:
    documents = [
        replace(d, meta={**d.meta, "loss_spans": [[5, len(d.text)]]})
        for d in DOCUMENTS
        if d.source == "prose" and len(d.text) > 20
    ]
    loader = open_loader(build(tmp_path, documents), CONFIG)
    reader = open_tokens(tmp_path, "train")
    total = float(reader.loss_weights("prose", 0, reader.index["prose"].tokens).sum())
    seen, rows = 0.0, loader.stats.sources["prose"].rows
    for step in range(-(-rows // 8)):
        batch = loader.batch(step)
        seen += float(batch["loss_weights"][[info.epoch == 0 for info in loader.rows_of(step)]].sum())
        for _, _, targets, positions, weights in segments(batch):
            assert (weights[targets == 2] == 1).all()  # EOS
            if positions[0] == 0 and len(targets) > 3:
                assert weights.sum() > 0
    assert seen == total


def test_permutations_are_permutations_and_differ() -> None:
    for size in (0, 1, 2, 1000):
        assert sorted(permutation(size, 0, "a", 0, 0).tolist()) == list(range(size))
    variants = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    assert len({tuple(permutation(50, *variant).tolist()) for variant in variants}) == len(variants)
    assert permutation(8, 0, "a", 0, 0).tolist() == [4, 2, 7, 1, 6, 5, 3, 0]  # a run of last year goes on the same


def test_bad_input_is_one_clear_line(dataset: Path, tmp_path: Path) -> None:
    other = train_tokenizer(replace(SMALL, vocab_size=500), sorted((dataset / "documents").iterdir()), tmp_path)
    cases = [
        (lambda: open_loader(tmp_path / "no", CONFIG), "no token shards here; build the dataset first"),
        (lambda: open_loader(dataset, CONFIG, tokenizer=other), "built with tokenizer .* with 500 ids"),
        (lambda: open_loader(dataset, replace(CONFIG, weights=(("cod", 1.0),))), "the dataset has code, prose"),
        (lambda: open_loader(dataset, CONFIG, process_index=0, process_count=3), "multiple of the number of processes"),
        (lambda: open_loader(dataset, CONFIG, process_index=2, process_count=2), "process 2 of 2"),
        (lambda: open_loader(dataset, CONFIG).batch(-1), "step -1: expected 0 or more"),
        (lambda: LoaderConfig(seq_len=1, global_batch_size=1), "loader.seq_len=1: expected at least 2"),
        (lambda: replace(CONFIG, packing="best"), "expected 'first_fit'"),  # type: ignore[arg-type]
        (lambda: replace(CONFIG, skip=((3, 3),)), "not a range of global row numbers"),
    ]
    for call, expected in cases:
        with pytest.raises(ValueError, match=expected) as caught:
            call()
        assert "\n" not in str(caught.value)

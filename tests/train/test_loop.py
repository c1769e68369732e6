"""train/loop.py is a file to copy: another objective takes at most ten lines. A bad step is named by its documents."""

import difflib
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import train.loop
from data.loader import Loader
from tests.train.tiny import losses, run_config, train_config

# What a researcher writes to train with label smoothing (Szegedy et al. 2016) instead.
OBJECTIVE = """
def smoothed(model, batch):
    hidden_BTD = model(batch["inputs"], batch["segment_ids"], batch["positions"])
    log_p_BTV = jax.nn.log_softmax(model.logits(hidden_BTD))
    nll_BT = -jax.numpy.take_along_axis(log_p_BTV, batch["targets"][..., None], -1)[..., 0]
    loss_BT = 0.9 * nll_BT - 0.1 * log_p_BTV.mean(-1)
    total, weight = (batch["loss_weights"] * loss_BT).sum(), batch["loss_weights"].sum()
    return total, {"loss": total, "weight": weight}
"""


def test_a_copy_with_another_objective_trains(corpus, tmp_path, own_mesh):
    original = Path(train.loop.__file__).read_text()
    line = "    objective = config.objective.make(options)\n"
    assert line in original
    copy = original.replace(line, "    objective = smoothed\n").replace(
        "\n\ndef train(", f"\n{OBJECTIVE}\n\ndef train(", 1
    )
    rows = difflib.ndiff(original.splitlines(), copy.splitlines())
    added = [row for row in rows if row[:1] == "+" and row[2:].strip()]
    assert len(added) <= 10
    (tmp_path / "my_loop.py").write_text(copy)
    spec = importlib.util.spec_from_file_location("my_loop", tmp_path / "my_loop.py")
    my_loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(my_loop)

    config = run_config(corpus, run_dir=str(tmp_path / "run"), train=train_config(num_steps=30))
    assert my_loop.train(config, corpus / "dataset") == 0
    values = list(losses(tmp_path / "run").values())
    assert len(values) == 30 and np.mean(values[-5:]) < values[0] - 0.5


def test_a_step_that_is_not_finite_is_skipped_and_named(corpus, tmp_path, own_mesh, monkeypatch, capsys):
    rows = None
    whole = Loader.batch

    def poisoned(loader: Loader, step: int):
        nonlocal rows
        batch = whole(loader, step)
        if step == 3:
            rows = loader.rows_of(step)
            batch["loss_weights"][0, 0] = np.nan
        return batch

    monkeypatch.setattr(Loader, "batch", poisoned)
    config = run_config(corpus, run_dir=str(tmp_path / "run"))
    assert train.loop.train(config, corpus / "dataset") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    bad = lines[3]
    assert bad["step"] == 4 and bad["loss"] == "nan" and bad["skipped/rows"] == [12, 13, 14, 15]
    assert bad["skipped/documents"] == sorted({name for row in rows for name in row.doc_ids})
    assert [line["skipped_total"] for line in lines] == [0.0] * 3 + [1.0] * 9
    assert all(np.isfinite(line["loss"]) for line in lines if line["step"] != 4)
    told = capsys.readouterr().err
    assert "step 4 skipped: loss nan" in told and bad["skipped/documents"][0] in told


def test_a_run_that_only_skips_ends_with_advice(corpus, tmp_path, own_mesh, monkeypatch):
    whole = Loader.batch

    def poisoned(loader: Loader, step: int):
        batch = whole(loader, step)
        batch["loss_weights"] *= np.nan
        return batch

    monkeypatch.setattr(Loader, "batch", poisoned)
    options = train_config(max_skipped_in_a_row=3)
    config = run_config(corpus, run_dir=str(tmp_path / "run"), train=options)
    with pytest.raises(ValueError, match="3 steps in a row were skipped, the last is step 3"):
        train.loop.train(config, corpus / "dataset")


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(corpus, tmp_path, own_mesh, monkeypatch):
    def too_large(memory):
        raise ValueError("parameters and optimizer take too much")

    monkeypatch.setattr(train.loop, "check_memory", too_large)
    monkeypatch.setattr(train.loop, "create_state", lambda *_: pytest.fail("the state was made first"))
    with pytest.raises(ValueError, match="parameters and optimizer take too much"):
        train.loop.train(run_config(corpus, run_dir=str(tmp_path / "run")), corpus / "dataset")


def test_a_run_folder_is_whole_by_itself(corpus, tmp_path, own_mesh, capsys):
    options = train_config(tensorboard=True)
    config = run_config(corpus, run_dir=str(tmp_path / "run"), train=options)
    assert train.loop.train(config, corpus / "dataset") == 0
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "report.html", "samples.txt", "tensorboard", "tokenizer",
    ]  # fmt: skip
    about = json.loads((run / "config.json").read_text())
    assert about["argv"] == sys.argv and about["versions"]["jax"] and about["config"]["train"]["ema_decay"] == 0.5
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"heldout/bits_per_byte/prose", "heldout/ema_bits_per_byte/code"} <= lines[5].keys()
    assert {"throughput/tokens_per_s", "learning_rate", "gradient_norm", "loss"} <= lines[0].keys()
    report = (run / "report.html").read_text()
    assert "<svg" in report and not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)|@import|url\(["']?http""", report)
    assert any((run / "tensorboard").iterdir()) and (run / "samples.txt").read_text().startswith("--- prompt 'def '")
    out = capsys.readouterr().out
    card, summary = out.split("--- prompt")[0], out.split("held-out bits/byte", 1)[1]
    for word in ("model", "precision", "attention", "mesh", "memory", "FLOP"):
        assert f"\n{word} " in card
    assert "gzip" in summary and "xz" in summary and "report.html" in summary

    (run / "report.html").unlink()  # as of a run that was killed between its last line and its report
    assert train.loop.train(config, corpus / "dataset") == 0
    assert (run / "report.html").read_text() == report

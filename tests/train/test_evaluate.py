"""python -m train.evaluate on a dataset, texts, questions and tasks of the harness: the numbers are what they say."""

import dataclasses
import json

import numpy as np
import pytest

from data.document import Document
from data.tables import write_documents
from tests.models.checkpoint_cases import byte_tokenizer, save_tiny
from tests.train.tiny import run_config, train_config
from train.evaluate import run
from train.evaluation import heldout_texts
from train.loop import train
from train.metrics import read_metrics

TEXTS = ["The tide was due at noon.", "Nobody had asked for these numbers in years.", "Ünïcödé, too"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    save_tiny(path)
    return path


def _evaluate(folder, capsys, *arguments) -> dict:
    assert run(["--checkpoint", str(folder), *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_texts_are_framed_as_documents_and_every_token_counts(folder, tmp_path, capsys):
    import jax.numpy as jnp

    from models.checkpoints.load import load_checkpoint

    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    found = _evaluate(folder, capsys, "--input", tmp_path / "texts.jsonl", "--output", tmp_path / "out.json")
    model, tokenizer = load_checkpoint(folder).model, byte_tokenizer()
    nats = 0.0
    for text in TEXTS:
        ids = jnp.asarray([[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]])
        hidden = model(ids[:, :-1], jnp.ones_like(ids[:, :-1]), jnp.arange(ids.shape[1] - 1)[None])
        logits = np.asarray(model.logits(hidden)[0], np.float64)
        nats -= (logits[np.arange(ids.shape[1] - 1), ids[0, 1:]] - np.log(np.exp(logits).sum(-1))).sum()
    expected = nats / np.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert found["bits_per_byte"]["texts"] == pytest.approx(expected, rel=1e-5)
    assert json.loads((tmp_path / "out.json").read_text())["sources"]["texts"]["documents"] == 3


def test_a_dataset_is_evaluated_on_its_held_out_documents_by_source(folder, tmp_path, capsys):
    splits = ["heldout", "train", "heldout"]
    documents = [
        Document(id=str(i), text=text, source="ab"[i % 2 if i < 2 else 1], meta={"split": split})
        for i, (text, split) in enumerate(zip(TEXTS, splits))
    ]
    (tmp_path / "documents").mkdir()
    write_documents(tmp_path / "documents" / "0.parquet", documents)
    assert heldout_texts(tmp_path) == {"a": [TEXTS[0]], "b": [TEXTS[2]]}
    found = _evaluate(folder, capsys, "--input", tmp_path)
    bits, sizes = found["bits_per_byte"], [len(TEXTS[i].encode()) for i in (0, 2)]
    assert bits["all"] == pytest.approx((bits["a"] * sizes[0] + bits["b"] * sizes[1]) / sum(sizes))
    (tmp_path / "documents" / "0.parquet").unlink()
    with pytest.raises(ValueError, match="is no dataset"):
        heldout_texts(tmp_path)


def test_a_run_is_worth_what_it_measured_itself(corpus, tmp_path, own_mesh, capsys):
    """Windows that do not overlap are the rows of training; the weights are the moving average, as in the run's end."""
    config = run_config(corpus, run_dir=str(tmp_path / "run"), train=train_config(num_steps=2))
    evaluation = dataclasses.replace(config.evaluation, at_start=True, max_final_bytes=None)
    assert train(dataclasses.replace(config, evaluation=evaluation), corpus / "dataset") == 0
    lines = [line for line in read_metrics(tmp_path / "run") if "heldout/bits_per_byte/all" in line]
    assert [line["step"] for line in lines] == [0, 2]
    capsys.readouterr()
    found = _evaluate(tmp_path / "run", capsys, "--input", corpus / "dataset", "--stride", config.loader.seq_len)
    assert found["window"] == config.loader.seq_len + 1
    for source, bits in found["bits_per_byte"].items():
        assert bits == pytest.approx(lines[-1][f"heldout/bits_per_byte/{source}"], rel=1e-5)


QUESTIONS = [
    {"question": "2 + 2 =", "choices": ["4", "five", "a fish"], "answer": 0},
    {"question": "The sky is", "choices": ["blue", "un", "a very long way from here"], "answer": 1},
    {"question": "Fish live in", "choices": ["water", "a tree", "!"], "answer": 2},
    {"question": "One, two,", "choices": ["three", "4", "x"], "answer": 0},
]
TASK = """task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
GENERATION_TASK = """task: tiny_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: ["z"]
  max_gen_toks: 4
metric_list:
  - metric: exact_match
"""
ROLLING_TASK = """task: tiny_rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list:
  - metric: bits_per_byte
"""


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return path


def test_questions_give_accuracies(folder, questions, capsys):
    found = _evaluate(folder, capsys, "--input", questions)
    assert found["questions"] == 4 and found["guessing"] == pytest.approx(1 / 3)
    assert 0 <= found["accuracy"] <= 1 and "log_likelihoods" not in found
    assert _evaluate(folder, capsys, "--input", questions, "--limit", 2)["questions"] == 2


def test_the_harness_finds_the_same_numbers(folder, questions, tmp_path, capsys, monkeypatch):
    """The real lm-evaluation-harness, a task of the same questions, and our own count."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: the adapter of the harness is not tested")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, task in {"choice": TASK, "text": GENERATION_TASK, "rolling": ROLLING_TASK}.items():
        (tmp_path / f"{name}.yaml").write_text(task.format(file=questions))
    tasks = "tiny_choice,tiny_text,tiny_rolling"
    found = _evaluate(folder, capsys, "--harness", tasks, "--harness-tasks", tmp_path)["tasks"]
    ours = _evaluate(folder, capsys, "--input", questions)
    assert found["tiny_choice"]["acc"] == ours["accuracy"]
    assert found["tiny_choice"]["acc_norm"] == ours["accuracy_norm"]
    assert "exact_match" in found["tiny_text"]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": question["question"]}) + "\n" for question in QUESTIONS))
    with_end = _evaluate(folder, capsys, "--input", texts)["bits_per_byte"]["texts"]
    assert 0 < found["tiny_rolling"]["bits_per_byte"] < with_end, "the harness does not count EOS"
    with pytest.raises(ValueError, match="has no task no_such_task"):
        run(["--checkpoint", str(folder), "--harness", "no_such_task"])


def test_what_cannot_be_evaluated_is_said_in_one_line(folder, tmp_path):
    for name, content, message in [
        ("absent.jsonl", None, "no dataset and no file"),
        ("bad.jsonl", '{"words": 1}\n', 'expected a JSON object with a "text" field'),
        ("empty.jsonl", "", "holds no documents"),
    ]:
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            run(["--checkpoint", str(folder), "--input", str(tmp_path / name)])

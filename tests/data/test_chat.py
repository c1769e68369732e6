"""Chats become exactly the model's own prompt, with loss on exactly what the assistant said."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.build import DataConfig
from data.chat import ChatError, check_messages, record_chat, render
from data.chat_stage import Chats, _Transform
from data.chat_tokens import chat_encoder
from data.clean.pii import PersonalData
from data.clean.step import Recipe
from data.document import Document, Dropped
from data.loader import LoaderConfig, open_loader
from data.sources.chat_files import ChatFiles
from data.tokenizer import load_tokenizer
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_extend import TokenizerExtension
from tests.data.token_data import build, stdlib_documents

MARKS = ("<|im_start|>", "<|im_end|>")
CHAT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4, of course."},
    {"role": "user", "content": "And é?\n\n"},
    {"role": "assistant", "content": "A letter."},
]


def chat_ml(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
    """ChatML, as SmolLM2, Qwen and others have it."""
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    return turns + ("<|im_start|>assistant\n" if add_generation_prompt else "")


def forgetful(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
    """A template that leaves out what was said before the last question."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    return chat_ml(messages[last:], add_generation_prompt)


@dataclass(frozen=True, kw_only=True)
class OwnTokenizer:
    """A trained tokenizer with chat marks."""

    folder: str

    def write(self, folder: Path) -> None:
        load_tokenizer(self.folder).save(folder)

    def chat_template(self) -> Any:
        return chat_ml


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose tokenizer has the marks of ChatML."""
    config = TokenizerConfig(vocab_size=500, sample_bytes=50_000, num_threads=1, special_tokens=MARKS)
    return build(tmp_path_factory.mktemp("chats"), stdlib_documents(4), config=config)


@pytest.fixture(scope="module")
def transform(folder: Path) -> _Transform:
    spec = (folder / "tokenizer" / "tokenizer.json").read_text()
    return _Transform(
        template=chat_ml, tokenizer_json=spec, train_on="assistant", max_tokens=None, too_long="drop", clean=None
    )


def document(number: int = 0, **meta: Any) -> Document:
    return Document(id=f"c:{number}", text="turns", source="chats", meta=meta)


def one(transform: _Transform, **meta: Any) -> Document | Dropped:
    (result,) = transform(iter([document(**meta)]))
    return result


def test_every_format_reads_as_the_same_chat() -> None:
    user, assistant = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    records = [
        {"messages": [user, assistant]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, assistant]},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"instruction": "Q", "input": "", "output": "A"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": [user], "completion": [assistant]},
    ]
    assert [record_chat(record) for record in records] == [{"messages": [user, assistant]}] * len(records)
    pair = {"chosen": [user, assistant], "rejected": [user, {"role": "assistant", "content": "B"}]}
    assert record_chat({"prompt": "Q", "chosen": "A", "rejected": "B"}) == record_chat(pair) == pair
    assert record_chat({"prompt": "Q", **pair}) == record_chat({"prompt": [user], **pair}) == pair  # said once
    told = [{"role": "system", "content": "S"}]
    whole = {name: told + side for name, side in pair.items()}
    assert record_chat({"prompt": "Q", **whole}) == whole
    more = {name: [assistant, *side] for name, side in pair.items()}  # the answers of a prompt that goes on
    assert record_chat({"prompt": "P", **more})["chosen"] == [{"role": "user", "content": "P"}, *more["chosen"]]
    developer = [{"role": "developer", "content": "S"}, user, assistant | {"weight": 1}]
    assert record_chat({"messages": developer}) == {"messages": [*told, user, assistant]}
    with_input = record_chat({"instruction": "Add", "input": "1 2", "output": "3"})
    assert with_input["messages"][0]["content"] == "Add\n\n1 2"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [{"role": "narrator", "content": "x"}]}, "unknown_role"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no_assistant_turn"),
        ({"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "x"}]}, "empty_message"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content_is_not_text"),
        ({"messages": "x", "n": 1}, "no_assistant_turn"),
        ({"text": "x"}, "no_chat_fields"),
        ({"prompt": "Q", "chosen": "A"}, "no_answer"),
        ({"prompt": "Q"}, "content_is_not_text"),
        ({"instruction": "Q", "output": None}, "content_is_not_text"),
        ({"instruction": ["Q"], "output": "A"}, "content_is_not_text"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown_role"),
        ({"conversations": None}, "not_messages"),
        ({"conversations": "x", "n": 1}, "no_assistant_turn"),
        ({"prompt": "P", "chosen": [{"role": "user", "content": "Q"}], "rejected": "B"}, "prompt_and_chats_differ"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "tool_calls_are_not_rendered"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}, "weight_is_not_0_or_1"),
    ],
)
def test_what_is_no_usable_chat_is_a_counted_drop(record: dict, reason: str, tmp_path: Path) -> None:
    def read() -> None:
        for messages in record_chat(record).values():
            check_messages(messages)

    if reason == "content_is_not_text" and "prompt" in record:  # a completion that is not there
        reason = "not_messages"
    with pytest.raises(ChatError) as error:
        read()
    assert error.value.reason == reason
    good = {"prompt": "Q", "completion": "A"}
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps(line) for line in (record, good)) + "\n{bad\n")
    source = ChatFiles(name="c", paths=(str(tmp_path / "c.jsonl"),))
    results = [result for shard in source.shards() for result in source.documents(shard)]
    assert [r.drop.reason if isinstance(r, Dropped) else r.text for r in results] == [
        reason,
        "user: Q\n\nassistant: A",
        "bad_json",
    ]


def learned(rendered: Document, folder: Path) -> list[str]:
    """The texts of each run of ids with loss."""
    encoder = chat_encoder((folder / "tokenizer" / "tokenizer.json").read_text())
    ids, weights = encoder.weighted(rendered.text, rendered.meta["loss_spans"])
    tokenizer = load_tokenizer(folder / "tokenizer")
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(weights)) + 1)
    assert encoder.decode(ids) == rendered.text
    text = rendered.text
    for mark in MARKS:
        text = text.replace(mark, "")
    assert tokenizer.decode(ids) == text  # the dataset's own tokenizer leaves the marks out
    return [encoder.decode([ids[i] for i in run]) for run in runs if weights[run[0]]]


def test_loss_lies_on_the_answers_and_the_end_of_turn(transform: _Transform, folder: Path) -> None:
    result = one(transform, messages=CHAT)
    assert isinstance(result, Document) and result.text == chat_ml(CHAT, False)
    assert "messages" not in result.meta
    assert learned(result, folder) == ["4, of course.<|im_end|>", "A letter.<|im_end|>"]
    last = one(replace(transform, train_on="last"), messages=CHAT)
    assert isinstance(last, Document) and learned(last, folder) == ["A letter.<|im_end|>"]
    every = one(replace(transform, train_on="all"), messages=CHAT)
    assert isinstance(every, Document) and learned(every, folder) == [every.text.removeprefix("<|im_start|>")]


def test_an_answer_of_weight_0_is_read_and_not_learned(transform: _Transform, folder: Path) -> None:
    chat = record_chat({"messages": [CHAT[0], CHAT[1] | {"weight": 0}, *CHAT[2:]]})["messages"]
    result = one(transform, messages=chat)
    assert isinstance(result, Document) and result.text == chat_ml(CHAT, False)
    assert learned(result, folder) == ["A letter.<|im_end|>"]
    for train_on, kept, reason in (("last", chat[:2], "no_answer"), ("all", chat, "weight_0_where")):
        dropped = one(replace(transform, train_on=train_on), messages=kept)
        assert isinstance(dropped, Dropped) and dropped.drop.reason.startswith(reason)


def test_an_answer_that_opens_a_chat_is_learned(transform: _Transform, folder: Path) -> None:
    """Also where the template makes a system turn of no message at all."""

    def polite(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        system = [] if messages else [{"role": "system", "content": "Be kind."}]
        return chat_ml([*system, *messages], add_generation_prompt)

    for template in (chat_ml, polite):
        result = one(replace(transform, template=template), messages=CHAT[1:])
        assert isinstance(result, Document) and result.text == chat_ml(CHAT[1:], False)
        assert learned(result, folder) == ["4, of course.<|im_end|>", "A letter.<|im_end|>"]


def test_a_token_across_the_border_has_no_loss(folder: Path) -> None:
    """The generation prompt ends in a space, which the answer's first word swallows."""

    def spoken(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        return " ".join(f"{m['role']}: {m['content']}" for m in messages) + (" assistant: " * add_generation_prompt)

    encoder = chat_encoder((folder / "tokenizer" / "tokenizer.json").read_text())
    chat = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "the other"}]
    rendered = render(chat, spoken, train_on="assistant", controls=encoder.controls)
    ((start, stop),) = rendered.spans
    assert rendered.text[start:stop] == "the other"
    _, weights = encoder.weighted(rendered.text, rendered.spans)
    _, offsets = encoder.encode(rendered.text)
    across = [i for i, (begin, end) in enumerate(offsets) if begin < start < end]
    assert across, "the case needs a token of a space and the answer's first letters"
    assert weights[across[0]] == 0
    assert {i for i, w in enumerate(weights) if w} == {i for i, (begin, _) in enumerate(offsets) if begin >= start}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "narrator", "content": "x"}], "unknown_role"),
        ([{"role": "user", "content": "x"}], "no_assistant_turn"),
        (
            [{"role": "user", "content": "end<|im_end|>"}, {"role": "assistant", "content": "x"}],
            "special_token_in_message",
        ),
    ],
)
def test_the_stage_drops_with_a_reason(transform: _Transform, messages: list, reason: str) -> None:
    result = one(transform, messages=messages)
    assert isinstance(result, Dropped) and result.drop.reason == reason and result.step == "chats"


def test_a_template_that_rewrites_turns_serves_the_last_answer_only(transform: _Transform, folder: Path) -> None:
    result = one(replace(transform, template=forgetful), messages=CHAT)
    assert isinstance(result, Dropped) and result.drop.reason == "template_rewrites_turns"
    last = one(replace(transform, template=forgetful, train_on="last"), messages=CHAT)
    assert isinstance(last, Document) and learned(last, folder) == ["A letter.<|im_end|>"]


def test_a_long_chat_is_dropped_and_truncated_only_when_asked(transform: _Transform, folder: Path) -> None:
    encoder = chat_encoder(transform.tokenizer_json)
    size = encoder.count(chat_ml(CHAT, False))
    kept = one(replace(transform, max_tokens=size), messages=CHAT)
    assert isinstance(kept, Document)
    dropped = one(replace(transform, max_tokens=size - 1), messages=CHAT)
    assert isinstance(dropped, Dropped)
    assert (dropped.drop.reason, dropped.drop.value, dropped.drop.threshold) == ("too_many_tokens", size, size - 1)
    cut = one(replace(transform, max_tokens=size - 20, too_long="truncate"), messages=CHAT)
    assert isinstance(cut, Document) and encoder.count(cut.text) <= size - 20
    assert kept.text.startswith(cut.text) and learned(cut, folder)[0] == "4, of course.<|im_end|>"
    nothing = one(replace(transform, max_tokens=5, too_long="truncate"), messages=CHAT)
    assert isinstance(nothing, Dropped) and nothing.drop.reason == "nothing_left_to_learn"


def test_messages_can_be_cleaned(transform: _Transform) -> None:
    recipe = Recipe(name="pii", steps=(PersonalData(),))
    chat = [{"role": "user", "content": "Write to jane.roe@example.org"}, {"role": "assistant", "content": "Done."}]
    result = one(replace(transform, clean=recipe), messages=chat)
    assert isinstance(result, Document) and "jane.roe" not in result.text and "Done." in result.text


# -------------------------------------------------------------------------------------------------- shards and rows


@pytest.fixture(scope="module")
def dataset(
    transform: _Transform, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Document]]:
    """Forty chats and twenty preferences as token shards."""
    prose = [d.text for d in stdlib_documents(6) if d.source == "prose" and MARKS[0] not in d.text][:60]
    documents = [
        document(
            i, messages=[{"role": "user", "content": text[:30] + "?"}, {"role": "assistant", "content": text[:200]}]
        )
        for i, text in enumerate(prose[:40])
    ]
    for i, text in enumerate(prose[40:60]):
        asked = {"role": "user", "content": text[:20] + "?"}
        sides = {
            name: [asked, {"role": "assistant", "content": answer}]
            for name, answer in (("chosen", text[:60]), ("rejected", "No: " + text[:90]))
        }
        documents.append(replace(document(100 + i, **sides), source="pairs"))
    made = list(transform(iter(documents)))
    rendered = [d for d in made if isinstance(d, Document)]
    assert len(rendered) == len(documents) == 60
    path = tmp_path_factory.mktemp("dataset")
    (path / "tokenizer").symlink_to(folder / "tokenizer")
    return build(path, rendered), rendered


def test_each_row_decodes_to_exactly_its_chats(dataset: tuple[Path, list[Document]]) -> None:
    path, rendered = dataset
    by_id = {d.id: d for d in rendered}
    encoder = chat_encoder((path / "tokenizer" / "tokenizer.json").read_text())
    config = LoaderConfig(seq_len=512, global_batch_size=4, weights=(("chats", 1.0),))
    loader = open_loader(path, config)
    seen = []
    for step in range(-(-loader.stats.rows // 4)):
        batch = loader.batch(step)
        for place, info in enumerate(loader.rows_of(step)):
            for segment, doc_id in enumerate(info.doc_ids, start=1):
                where = batch["segment_ids"][place] == segment
                ids = [int(batch["inputs"][place][where][0]), *batch["targets"][place][where].tolist()]
                chat = by_id[doc_id]
                assert encoder.decode(ids) == chat.text
                weights = encoder.weighted(chat.text, chat.meta["loss_spans"])[1]
                assert batch["loss_weights"][place][where].tolist() == weights[1:].tolist()
                seen.append(doc_id) if info.epoch == 0 else None
    assert sorted(seen) == sorted(d.id for d in rendered if d.source == "chats")


def test_a_preference_is_two_segments_with_the_same_prompt(dataset: tuple[Path, list[Document]]) -> None:
    path, rendered = dataset
    by_id = {d.id: d for d in rendered}
    encoder = chat_encoder((path / "tokenizer" / "tokenizer.json").read_text())
    loader = open_loader(path, LoaderConfig(seq_len=512, global_batch_size=2, weights=(("pairs", 1.0),)))
    batch, infos = loader.batch(0), loader.rows_of(0)
    for place, info in enumerate(infos):
        assert batch["segment_ids"][place].max() == len(info.doc_ids)
        for segment, doc_id in enumerate(info.doc_ids, start=1):
            where = batch["segment_ids"][place] == segment
            chat, weights = by_id[doc_id], batch["loss_weights"][place][where]
            border = chat.meta["second"]
            text = chat.text[:border] if segment % 2 else chat.text[border:]
            ids = batch["inputs"][place][where].tolist()
            if segment % 2 == 0:  # the chosen one's last place has all its ids as inputs, and a target without loss
                ids.append(int(batch["targets"][place][where][-1]))
            assert encoder.decode(ids) == text
            targets = batch["targets"][place][where][weights > 0].tolist()
            start, stop = chat.meta["loss_spans"][(segment - 1) % 2]
            assert encoder.decode(targets) == chat.text[start:stop]
            assert batch["positions"][place][where].tolist() == list(range(where.sum()))


def test_rows_that_would_cut_a_chat_are_refused(dataset: tuple[Path, list[Document]]) -> None:
    path, _ = dataset
    config = LoaderConfig(seq_len=512, global_batch_size=2)
    with pytest.raises(ValueError, match=r"chats are longer than loader.seq_len=32 .*Chats\(max_tokens=33\)"):
        open_loader(path, replace(config, seq_len=32))
    with pytest.raises(ValueError, match="which concat_then_split would cut: use packing='first_fit'"):
        open_loader(path, replace(config, packing="concat_then_split"))


def test_a_rendered_text_that_was_changed_is_refused(transform: _Transform, folder: Path, tmp_path: Path) -> None:
    result = one(transform, messages=CHAT)
    assert isinstance(result, Document)
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    with pytest.raises(ValueError, match="changed after it was rendered"):
        build(tmp_path, [result.with_text(result.text + " ")], shards=1)


def test_preferences_do_not_share_a_source(transform: _Transform, folder: Path, tmp_path: Path) -> None:
    chosen, rejected = CHAT[:2], [CHAT[0], {"role": "assistant", "content": "5"}]
    documents = list(transform(iter([document(1, messages=CHAT), document(2, chosen=chosen, rejected=rejected)])))
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    with pytest.raises(ValueError, match="1 preferences among 2 documents"):
        build(tmp_path, documents, shards=1)  # type: ignore[arg-type]
    same = one(transform, chosen=chosen, rejected=chosen)
    assert isinstance(same, Dropped) and same.drop.reason == "same_answers"
    other = one(transform, chosen=chosen, rejected=CHAT[2:])
    assert isinstance(other, Dropped) and other.drop.reason == "different_prompts"


def test_chats_that_were_not_rendered_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    with pytest.raises(ValueError, match="has messages that were not rendered as a chat: add Chats"):
        build(tmp_path, [document(messages=CHAT)], shards=1)


def test_preferences_are_not_mixed_with_chats(dataset: tuple[Path, list[Document]]) -> None:
    with pytest.raises(ValueError, match=r"mixes preferences \(pairs\) with documents that are none \(chats\)"):
        open_loader(dataset[0], LoaderConfig(seq_len=512, global_batch_size=2))


def test_a_template_pickles() -> None:
    from models.checkpoints.tokenizer import ChatTemplate

    template = ChatTemplate(
        source="{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}", bos="", eos="</s>"
    )
    assert pickle.loads(pickle.dumps(template))(CHAT[:1], True) == "[user]What is 2 + 2?</s>"


def test_plain_documents_alone_are_refused(folder: Path, tmp_path: Path) -> None:
    from data.engine import LocalPool
    from data.tables import write_documents

    write_documents(tmp_path / "0.parquet", stdlib_documents(1))
    stage = Chats(tokenizer=OwnTokenizer(folder=str(folder / "tokenizer")))
    with pytest.raises(ValueError, match="has messages; set form='messages'"):
        stage.run([tmp_path / "0.parquet"], tmp_path / "out", LocalPool(workers=1))


def test_another_template_at_the_same_location_is_another_dataset(tmp_path: Path) -> None:
    """One that differs only where a short chat does not show it, too."""
    from models.checkpoints.load import CheckpointTokenizer
    from models.checkpoints.tokenizer import TEMPLATE_FILE
    from tests.models.checkpoint_cases import save_tiny

    save_tiny(tmp_path)
    stage, keys = Chats(tokenizer=CheckpointTokenizer(location=str(tmp_path))), []
    for told in ("{{ m.content }}", "<told>{{ m.content }}"):
        system = f"{{% if m.role == 'system' %}}{told}{{% else %}}{{{{ m.role }}}}: {{{{ m.content }}}}{{% endif %}}"
        (tmp_path / TEMPLATE_FILE).write_text(f"{{% for m in messages %}}{system}\n{{% endfor %}}")
        keys.append(stage.inputs_key())
    assert keys[0] != keys[1] and keys[1] == stage.inputs_key()


def test_chats_are_encoded_by_the_tokenizer_that_they_are_rendered_for() -> None:
    """Another's special tokens would be cut into pieces of plain text, and nothing would say so."""
    own, other = OwnTokenizer(folder="a"), OwnTokenizer(folder="b")
    source = ChatFiles(name="chats", paths=("chats.jsonl",))

    def config(tokenizer: Any) -> DataConfig:
        return DataConfig(path="d", sources=(source,), stages=(Chats(tokenizer=own),), tokenizer=tokenizer)

    for tokenizer in (other, TokenizerConfig(vocab_size=500), TokenizerExtension(base=other, languages=("de",))):
        with pytest.raises(ValueError, match=r"chats are rendered for .*folder='a'.* and encoded by data.tokenizer="):
            config(tokenizer)
    for tokenizer in (own, None, TokenizerExtension(base=OwnTokenizer(folder="a"), languages=("de",))):
        config(tokenizer)

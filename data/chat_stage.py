"""Chats: the stage that turns meta["messages"] into the text that a model is tuned on.

    Chats(tokenizer=CheckpointTokenizer(location=...), max_tokens=1024)

It takes what any dialogue source with `form="messages"`, or `data.sources.chat_files`, puts into meta: "messages" of a
chat, or "chosen" and "rejected" of a preference. The text becomes the chat in the checkpoint's own template, and meta
says which characters have loss:

    loss_spans     [[start, stop), ...] in characters of the text
    rendered       a hash of the text: special tokens in it are read as such, and no BOS or EOS is added. Should a later
                   stage change the text, the spans would lie elsewhere: data.tokenize refuses it
    second         of a preference: the character at which the rejected chat begins; the chosen one stands before it

A document without messages passes as it is, so that chats and plain text can be mixed; not one with messages is an
error. Cleaning and deduplication go before this stage; they read the turns, but their edits do not reach messages.
`clean` names what is done to every message: replacing personal data, mending encodings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from data.chat import CHAT_KEYS, ChatError, Render, Rendered, render
from data.chat_tokens import ChatEncoder, chat_encoder, text_hash
from data.clean.step import Recipe, clean_document
from data.document import Document, Drop, Dropped
from data.engine import Engine
from data.stage import Counts, map_documents
from data.tables import read_documents

VERSION = 1


class ChatTokenizer(Protocol):
    """A checkpoint's tokenizer and chat template, as a config names it (`models.checkpoints.load`)."""

    def write(self, folder: Path) -> None:
        """Write tokenizer.json and what names its special tokens into `folder`, which is there and empty."""
        ...

    def chat_template(self) -> Render:
        """(messages, add_generation_prompt) -> text; it pickles. ValueError where the checkpoint has no template."""
        ...


@dataclass(frozen=True, kw_only=True)
class Chats:
    """Renders chats and preferences, and drops what cannot be used under the reason of `data.chat.ChatError`.

    tokenizer: whose template and special tokens.
    train_on: "assistant" (every answer has loss), "last" (the last answer alone) or "all".
    max_tokens: most tokens of a chat; None: any number (the loader then refuses chats that are longer than its rows).
    too_long: what becomes of a longer one: "drop", or "truncate" to its first max_tokens (never for preferences).
    clean: steps that every message passes; a chat whose message is dropped by one is dropped for that reason.
    """

    tokenizer: ChatTokenizer
    train_on: Literal["assistant", "last", "all"] = "assistant"
    max_tokens: int | None = None
    too_long: Literal["drop", "truncate"] = "drop"
    clean: Recipe | None = None

    name: ClassVar[str] = "chats"
    version: ClassVar[int] = VERSION
    code_modules: ClassVar[tuple[str, ...]] = ("data.chat", "data.chat_stage", "data.chat_tokens")
    libraries: ClassVar[tuple[str, ...]] = ("jinja2", "tokenizers")

    def __post_init__(self) -> None:
        if self.train_on not in ("assistant", "last", "all") or self.too_long not in ("drop", "truncate"):
            raise ValueError(f"chats: train_on={self.train_on!r}, too_long={self.too_long!r} is none of the choices")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(f"chats.max_tokens={self.max_tokens}: expected at least 2, or None")

    def inputs_key(self) -> Any:
        """What the template makes of a probe, and what the tokenizer writes, its template and special tokens among it:
        another one at the same location is another dataset."""
        from data.steps import source_hash  # here: what workers import too is kept small

        probe = [{"role": "user", "content": "0"}, {"role": "assistant", "content": "1"}]
        return [self.tokenizer.chat_template()(probe, True), source_hash(self.tokenizer)]

    def run(self, inputs: Sequence[Path], output: Path, engine: Engine) -> Counts:
        """Shard by shard. ValueError where no document at all is a chat."""
        folder = output / "scratch" / "tokenizer"
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.write(folder)
        transform = _Transform(
            template=self.tokenizer.chat_template(),
            tokenizer_json=(folder / "tokenizer.json").read_text(encoding="utf-8"),
            train_on=self.train_on,
            max_tokens=self.max_tokens,
            too_long=self.too_long,
            clean=self.clean,
        )
        counts = map_documents(transform, inputs, output, engine, label=self.name)
        kept = (document for path in sorted((output / "kept").iterdir()) for document in read_documents(path))
        if counts.kept == counts.read > 0 and not any("rendered" in document.meta for document in kept):
            raise ValueError(
                f"chats: none of {counts.read:,} documents has messages; set form='messages' on a dialogue source, or "
                "read chats with data.sources.chat_files"
            )
        return counts


@dataclass(frozen=True, kw_only=True)
class _Transform:
    """What a worker is sent: the settings, with the tokenizer and template as values."""

    template: Render
    tokenizer_json: str
    train_on: str
    max_tokens: int | None
    too_long: str
    clean: Recipe | None

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        encoder = chat_encoder(self.tokenizer_json)
        for document in documents:
            if not any(key in document.meta for key in CHAT_KEYS):
                yield document
                continue
            meta = {key: value for key, value in document.meta.items() if key not in CHAT_KEYS}
            try:
                text, changes = self._chat(document, encoder)
            except ChatError as error:
                drop = Drop(error.reason, error.value, self.max_tokens if error.reason == "too_many_tokens" else None)
                yield Dropped(replace(document, meta=meta), Chats.name, drop)
                continue
            yield replace(document, text=text, meta=meta | changes | {"rendered": text_hash(text)})

    def _chat(self, document: Document, encoder: ChatEncoder) -> tuple[str, dict[str, Any]]:
        """The text of a document and what its meta says of it."""
        meta = document.meta
        if "messages" in meta:
            chat = self._fit(self._render(document, meta["messages"], self.train_on, encoder), encoder)
            return chat.text, {"loss_spans": chat.spans}
        sides = [self._render(document, meta.get(name) or [], "last", encoder) for name in ("chosen", "rejected")]
        chosen, rejected = sides
        if chosen.text == rejected.text:
            raise ChatError("same_answers")
        if chosen.text[: chosen.spans[0][0]] != rejected.text[: rejected.spans[0][0]]:
            raise ChatError("different_prompts")
        tokens = sum(encoder.count(side.text) for side in sides)
        if self.max_tokens is not None and tokens > self.max_tokens:
            raise ChatError("too_many_tokens", tokens)
        second = len(chosen.text)
        spans = chosen.spans + [[start + second, stop + second] for start, stop in rejected.spans]
        return chosen.text + rejected.text, {"loss_spans": spans, "second": second}

    def _render(
        self, document: Document, messages: Sequence[Mapping[str, str]], train_on: str, encoder: ChatEncoder
    ) -> Rendered:
        if self.clean is not None:
            messages = [{**message, "content": self._cleaned(document, message["content"])} for message in messages]
        return render(messages, self.template, train_on=train_on, controls=encoder.controls)

    def _cleaned(self, document: Document, content: str) -> str:
        assert self.clean is not None
        result = clean_document(self.clean, replace(document, text=content, meta={}, scores={}))
        if isinstance(result, Dropped):
            raise ChatError(result.drop.reason, result.drop.value)
        return result.text

    def _fit(self, chat: Rendered, encoder: ChatEncoder) -> Rendered:
        if self.max_tokens is None:
            return chat
        _, offsets = encoder.encode(chat.text)
        if len(offsets) <= self.max_tokens:
            return chat
        if self.too_long == "drop":
            raise ChatError("too_many_tokens", len(offsets))
        end = offsets[self.max_tokens - 1][1]
        while encoder.count(chat.text[:end]) > self.max_tokens:  # the cut fell into a word that has other ids alone
            end -= 1
        spans = [[start, min(stop, end)] for start, stop in chat.spans if start < end]
        if not spans:
            raise ChatError("nothing_left_to_learn", len(offsets))
        return Rendered(chat.text[:end], spans)

"""Chats and preferences for tuning from JSON Lines, in any of the formats that `data.chat` reads.

ChatFiles(name="support", paths=("chats/*.jsonl",))

The messages stand in meta, the text is the same chat in turns: filters and deduplication see it as any other text,
and `data.chat_stage.Chats` renders the messages in the model's template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data.chat import ChatError, check_messages, plain_text, record_chat
from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource
from data.sources.jsonl import lookup, parse_object


@dataclass(frozen=True, kw_only=True)
class ChatFiles(FileSource):
    """One chat or preference a line.

    group_field: a field that names what must stay on one side of the held-out split (a thread, a customer); without
        one, preferences over the same prompt stay together and every chat is its own group.
    """

    group_field: str | None = None

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.chat_files",
        "data.sources.jsonl",
        "data.chat",
    )

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """A line that is no usable chat is a counted drop under its reason."""
        for offset, line in files.iter_lines(stream, self.limits):
            if isinstance(line, int):
                yield self.too_large(shard, offset, line)
                continue
            record, reason = parse_object(line)
            if record is None:
                yield self.drop(shard, offset, reason, text=line[:300].decode("utf-8", "replace"))
                continue
            try:
                yield self._document(shard, offset, record)
            except ChatError as error:
                yield self.drop(shard, offset, error.reason, value=error.value)

    def _document(self, shard: Mapping[str, Any], offset: int, record: Mapping[str, Any]) -> Document | Dropped:
        chat = record_chat(record)
        for messages in chat.values():
            check_messages(messages)
        group = lookup(record, self.group_field) if self.group_field else None
        if group is None and "chosen" in chat:
            group = f"{self.name}:{plain_text(chat['chosen'][:-1])}"
        text = plain_text(chat["messages"] if "messages" in chat else chat["chosen"])
        return self.document(shard, offset, text, offset=offset, group=group, **chat)

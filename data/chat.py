"""Chats: records of the common tuning formats as messages, and messages as one text with the spans that have loss.

    {"messages": [{"role": "user", "content": "Hi"}, ...]}            OpenAI; content may be a list of text parts, an
                                                                      answer of "weight": 0 has no loss
    {"conversations": [{"from": "human", "value": "Hi"}, ...]}        ShareGPT
    {"instruction": "...", "input": "...", "output": "..."}           Alpaca (Taori et al. 2023)
    {"prompt": "..." or messages, "completion": "..." or messages}    one answer
    {"prompt": "..." or messages, "chosen": ..., "rejected": ...}     a preference; without a prompt, two whole chats,
                                                                      and so with one where both begin with it already

What an assistant said is found by prefix difference: the template rendered up to the answer, and with the answer. That
needs no marks in the template. A template that rewrites earlier turns once later ones follow (some hide reasoning)
has no such prefix; those chats are refused, unless only the last answer is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

VERSION = 3

CHAT_KEYS = ("messages", "chosen", "rejected")  # where meta holds them
ROLES = ("system", "user", "assistant", "tool")
SPOKEN_AS = {  # names that the formats have for the same four
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function": "tool",
    "observation": "tool",
    **{role: role for role in ROLES},
}
# The two prompts of the Alpaca code release (github.com/tatsu-lab/stanford_alpaca) differ in their preamble only; a
# chat template has one of its own, so instruction and input are the user's message, an empty line apart.
Message = dict[str, Any]  # role, content, and weight=0 on an answer without loss
Render = Callable[[Sequence[Mapping[str, Any]], bool], str]  # (messages, add_generation_prompt) -> text


class ChatError(ValueError):
    """A chat that cannot be used. reason: snake_case, for a `Drop`; value: what was found."""

    def __init__(self, reason: str, value: str | float | None = None):
        super().__init__(reason if value is None else f"{reason}: {value}")
        self.reason, self.value = reason, value


def record_chat(record: Mapping[str, Any]) -> dict[str, list[Message]]:
    """{"messages"} of a chat, {"chosen", "rejected"} of a preference; ChatError where the record is neither."""
    if "chosen" in record or "rejected" in record:
        return _preference(record)
    if "messages" in record:
        return {"messages": _as_messages(record["messages"], "user")}
    start = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    if "conversations" in record:
        return {"messages": _as_messages(start, "system") + _as_messages(record["conversations"], "user")}
    if "instruction" in record:
        asked = "\n\n".join(_content(record[key]) for key in ("instruction", "input") if record.get(key))
        end = [{"role": "user", "content": asked}, {"role": "assistant", "content": record.get("output")}]
        return {"messages": _as_messages([*start, *end], "user")}
    if "prompt" in record:
        prompt = _as_messages(record["prompt"], "user")
        return {"messages": prompt + _as_messages(record.get("completion"), "assistant")}
    raise ChatError("no_chat_fields", ", ".join(sorted(map(str, record)))[:100])


def _preference(record: Mapping[str, Any]) -> dict[str, list[Message]]:
    """Both chats of a preference. Some sets repeat the prompt in front of the answers: it is said once here."""
    prompt = _as_messages(record.get("prompt") or [], "user")
    pair = {}
    for name in ("chosen", "rejected"):
        if not record.get(name):
            raise ChatError("no_answer", name)
        pair[name] = _as_messages(record[name], "assistant")
    if not prompt or all(all(message in side for message in prompt) for side in pair.values()):
        return pair
    if any(side[:1] and side[0]["role"] in (prompt[-1]["role"], "system") for side in pair.values()):
        raise ChatError("prompt_and_chats_differ")
    return {name: prompt + side for name, side in pair.items()}


def _as_messages(value: Any, role: str) -> list[Message]:
    """A string as one message of `role`; a list of messages in our words."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise ChatError("not_messages", type(value).__name__)
    messages = []
    for message in value:
        if not isinstance(message, Mapping):
            raise ChatError("not_messages", type(message).__name__)
        spoken = message.get("role", message.get("from"))
        if not isinstance(spoken, str) or spoken not in SPOKEN_AS:
            raise ChatError("unknown_role", str(spoken))
        if message.get("tool_calls") or message.get("function_call"):
            raise ChatError("tool_calls_are_not_rendered")
        role = SPOKEN_AS[spoken]
        content = _content(message.get("content", message.get("value")))
        messages.append({"role": role, "content": content} | _weight(message, role))
    return messages


def _weight(message: Mapping[str, Any], role: str) -> dict[str, int]:
    """{"weight": 0} of an answer without loss; nothing of any other message, whose loss is none of its own."""
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise ChatError("weight_is_not_0_or_1", str(weight))
    return {"weight": 0} if weight == 0 and role == "assistant" else {}


def _content(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        value = "".join(_content(part.get("text")) for part in value)
    if not isinstance(value, str):
        raise ChatError("content_is_not_text", type(value).__name__)
    return value


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """ChatError for an unknown role, a message without text, or a chat in which no assistant speaks."""
    for message in messages:
        if message.get("role") not in ROLES:
            raise ChatError("unknown_role", str(message.get("role")))
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise ChatError("empty_message", message["role"])
    if all(message["role"] != "assistant" for message in messages):
        raise ChatError("no_assistant_turn", len(messages))


def plain_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The chat as `role: text` turns, an empty line between them: what cleaning and deduplication look at."""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


@dataclass(frozen=True)
class Rendered:
    """A chat as the model reads it. spans: [start, stop) ranges of characters with loss, in order and apart."""

    text: str
    spans: list[list[int]]


def render(messages: Sequence[Mapping[str, Any]], template: Render, *, train_on: str, controls: re.Pattern) -> Rendered:
    """The chat in the model's template.

    train_on: "assistant" for every answer, "last" for the last one alone, "all" for everything after the first token.
    controls: the tokenizer's special tokens. A message that holds one is refused: it would end a turn where nobody
    ended it. An answer's span goes on to the special token that ends the turn; the white space after that has no loss.
    Errors: ChatError.
    """
    check_messages(messages)
    for message in messages:
        if found := controls.search(message["content"]):
            raise ChatError("special_token_in_message", found.group())
    unlearned = [message.get("weight") == 0 for message in messages]
    messages = [{"role": message["role"], "content": message["content"]} for message in messages]
    text = _rendered(template, messages, False)
    if train_on == "all":
        if any(unlearned):
            raise ChatError("weight_0_where_all_is_trained_on")
        return Rendered(text, [[0, len(text)]])
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    answers = [index for index in answers[-1 if train_on == "last" else 0 :] if not unlearned[index]]
    if not answers:
        raise ChatError("no_answer_has_weight")
    return Rendered(text, [_span(messages, index, text, template, controls) for index in answers])


def _span(
    messages: Sequence[Mapping[str, Any]], index: int, text: str, template: Render, controls: re.Pattern
) -> list[int]:
    before = _rendered(template, messages[:index], True) if index else _opening(template)
    until = _rendered(template, messages[: index + 1], False)
    if not (text.startswith(before) and text.startswith(until) and len(before) < len(until)):
        raise ChatError("template_rewrites_turns", index)
    stop = len(until)
    ends = [found.end() for found in controls.finditer(until, len(before))]
    if ends and not until[ends[-1] :].strip():
        stop = ends[-1]
    return [len(before), stop]


def _opening(template: Render) -> str:
    """What stands before an answer that opens a chat: many templates make something else of no message at all."""
    zero, one = (_rendered(template, [{"role": "assistant", "content": text}], False) for text in "01")
    return commonprefix([zero, one])  # noqa: RUF071 (characters are what is meant)


def _rendered(template: Render, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
    try:
        return template(messages, add_generation_prompt)
    except ValueError as error:  # the template's own refusal: two users in a row, no system message allowed, ...
        raise ChatError("template_refuses", " ".join(str(error).split())[:200]) from error

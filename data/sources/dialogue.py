"""Conversations as documents: text with speaker turns, or chat messages for fine-tuning.

Every dialogue source takes `form="text"` or `form="messages"`. Messages stand in meta["messages"] as
{"role": "user" | "assistant", "content": ...}; the document's text is the same conversation in turns, so that cleaning
and deduplication work on both forms alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FORMS = ("text", "messages")
MAX_TURNS = 2000  # posts in one document; a thread's rest is counted as dropped


@dataclass(frozen=True, slots=True)
class Turn:
    """One post. speaker: a name; depth: how deep in the tree it hangs, 0 for the first post."""

    id: str
    speaker: str
    text: str
    depth: int = 0
    score: int | None = None


def check_form(form: str) -> None:
    """ValueError for a form that is none."""
    if form not in FORMS:
        raise ValueError(f"form is {form!r}: expected one of {', '.join(FORMS)}")


def turns_text(turns: Sequence[Turn], title: str = "") -> str:
    """`# title`, then `speaker: text` a turn, an empty line between turns."""
    parts = [f"# {title}"] if title else []
    return "\n\n".join([*parts, *(f"{turn.speaker}: {turn.text}" for turn in turns)])


def chat_messages(turns: Sequence[Turn], title: str = "") -> list[dict[str, str]]:
    """Alternating messages: who speaks first is the user, others the assistant; neighbours of one role are joined."""
    messages: list[dict[str, str]] = []
    first = turns[0].speaker if turns else ""
    for turn in turns:
        role = "user" if turn.speaker == first else "assistant"
        content = f"{title}\n\n{turn.text}" if title and not messages and title not in turn.text else turn.text
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content}"
        else:
            messages.append({"role": role, "content": content})
    return messages


def form_meta(turns: Sequence[Turn], title: str, form: str) -> dict[str, Any]:
    """What a dialogue's meta says of its turns."""
    meta: dict[str, Any] = {
        "num_turns": len(turns),
        "num_speakers": len({turn.speaker for turn in turns}),
        "scores": [turn.score for turn in turns] if any(turn.score is not None for turn in turns) else None,
    }
    if form == "messages":
        meta["messages"] = chat_messages(turns, title)
    return meta


def walk_tree(root: str, children: Mapping[str, Sequence[str]], limit: int = MAX_TURNS) -> Iterable[tuple[str, int]]:
    """(id, depth) of a thread from its root, replies behind what they answer, in the order given; each id once."""
    stack, seen, count = [(root, 0)], {root}, 0
    while stack and count < limit:
        identifier, depth = stack.pop()
        yield identifier, depth
        count += 1
        for following in reversed(children.get(identifier, ())):
            if following not in seen:
                seen.add(following)
                stack.append((following, depth + 1))


def best_path(root: str, children: Mapping[str, Sequence[str]], score: Mapping[str, int]) -> list[str]:
    """From the root down, always the reply scored highest: one conversation out of a tree."""
    path, seen = [root], {root}
    while replies := [reply for reply in children.get(path[-1], ()) if reply not in seen]:
        path.append(max(replies, key=lambda reply: score.get(reply, 0)))
        seen.add(path[-1])
        if len(path) >= MAX_TURNS:
            break
    return path

"""Rendered chats to ids, as transformers' `apply_chat_template` makes them: special tokens in the text are found."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import xxhash
from tokenizers import Tokenizer as Backend

VERSION = 1


class ChatEncoder:
    """The encoder of one tokenizer.json.

    controls: a pattern of its special tokens. A message must hold none of them: see `data.chat.render`.
    """

    def __init__(self, tokenizer_json: str):
        spec = json.loads(tokenizer_json)
        spec["post_processor"] = None  # adds nothing wanted here, and would trim offsets: these tile the text
        self._backend = Backend.from_str(json.dumps(spec))
        self._backend.no_padding()
        self._backend.no_truncation()
        specials = [token["content"] for token in spec.get("added_tokens") or [] if token["special"]]
        # without any special token: a pattern that is found nowhere
        self.controls = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and the characters [start, stop) that each stands for; ids of one character's bytes all name it."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def count(self, text: str) -> int:
        """Number of ids."""
        return len(self.encode(text)[0])

    def weighted(self, text: str, spans: Sequence[Sequence[int]]) -> tuple[list[int], np.ndarray]:
        """Ids and their loss weights: 1 for those that lie wholly in a span, and never for the first.

        A token across the border of a span has none: what generates an answer sees the prompt's characters as tokens
        of their own, so it could never produce that one.
        """
        ids, offsets = self.encode(text)
        begins, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        weights = np.zeros(len(ids), np.float32)
        for start, stop in spans:
            weights[(begins >= start) & (ends <= stop)] = 1.0
        weights[:1] = 0.0
        return ids, weights


@cache
def chat_encoder(tokenizer_json: str) -> ChatEncoder:
    """The encoder, made once in a process."""
    return ChatEncoder(tokenizer_json)


def text_hash(text: str) -> str:
    """What meta["rendered"] holds of a rendered text."""
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))

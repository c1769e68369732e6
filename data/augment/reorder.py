"""Sentence reordering: the sentences of a paragraph in another order, paragraphs in the same.

Turns of a dialogue, lists, tables and code keep their order: there it is the meaning.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from data.augment.sentences import Piece, is_dialogue, is_prose, joined, paragraphs, sentences
from data.augment.technique import Request, chance
from data.document import Drop

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Reorder:
    """mode: "shuffle" draws any other order, "rotate" moves the first sentences to the end of their paragraph.

    least: sentences that a paragraph must have to be changed.
    """

    mode: Literal["shuffle", "rotate"] = "shuffle"
    least: int = 3

    name: ClassVar[str] = "reorder"
    in_driver: ClassVar[bool] = False
    libraries: ClassVar[tuple[str, ...]] = ("sentencex",)

    def __post_init__(self) -> None:
        if self.mode not in ("shuffle", "rotate"):
            raise ValueError(f"Reorder: mode is {self.mode!r}: expected 'shuffle' or 'rotate'")
        if self.least < 2:
            raise ValueError(f"Reorder: least is {self.least}: one sentence has no other order, give at least 2")

    @property
    def model(self) -> str:
        """The rule, for the lineage."""
        return f"rule: {self.mode}"

    def inputs_key(self) -> Any:
        """None: no files are read."""
        return None

    def build(self) -> Reorder:
        """Itself: there is nothing to load."""
        return self

    def __call__(self, requests: Sequence[Request]) -> list[str | Drop]:
        return [self.rewrite(request) for request in requests]

    def rewrite(self, request: Request) -> str | Drop:
        """The text with the sentences of its paragraphs in another order."""
        if not request.text.strip():
            return Drop("empty_text")
        if request.dialogue:
            return Drop("dialogue")
        draw = chance(request.seed)
        changed = False
        parts = []
        for paragraph in paragraphs(request.text):
            text = paragraph.text
            if is_prose(text) and not is_dialogue(text):
                pieces = sentences(text, request.language)
                if sum(1 for piece in pieces if piece.text) >= self.least:
                    text = joined(self._other_order(pieces, draw))
                    changed = changed or text != paragraph.text
            parts.append(text + paragraph.space)
        return "".join(parts) if changed else Drop("nothing_to_reorder")

    def _other_order(self, pieces: list[Piece], draw: random.Random) -> list[Piece]:
        """The same white space in the same places; only what stands between moves."""
        places = [index for index, piece in enumerate(pieces) if piece.text]
        order = list(places)
        if self.mode == "rotate":
            by = draw.randrange(1, len(order))
            order = order[by:] + order[:by]
        else:
            while order == places:
                draw.shuffle(order)
        spaces = [piece.space for piece in pieces]
        moved = list(pieces)
        for place, index in zip(places, order):
            moved[place] = Piece(pieces[index].text, spaces[place])
        # the last sentence of a paragraph has no space behind it, and must not be glued to the next one
        return moved

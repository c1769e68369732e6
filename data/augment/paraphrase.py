"""Paraphrase with a language model that follows instructions, in the styles of "Rephrasing the Web" and one more.

Maini et al. 2024 (arXiv 2401.16380, appendix A): the same content told simply, like an encyclopaedia, or as questions
and answers; the wording of the prompts here is our own. Long documents go in parts of whole paragraphs; lists, tables
and code stay as they are. The model is a `Generator`, such as `models.specs.CheckpointGenerator(chat=True)`. A copy is
a function of document, settings and seed whether it decodes greedily or draws: every prompt brings a seed of its own.

SmolLM2-135M-Instruct, greedy, at most 512 new tokens, on 50 paragraphs of news of 250 to 700 characters (3,250 tokens
of answers, about): 5 kept (10 %); 14 changed names, 14 changed numbers, 9 too short, 6 the same text, 1 a loop, 1 cut;
261 s of processor time in batches of 16. It is a small model for this: it leaves out what it should keep.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from data.augment.gates import Gates
from data.augment.sentences import is_prose, paragraphs
from data.augment.technique import Request, chance, derive, other_language
from data.document import Drop

VERSION = 2
CHARACTERS_A_TOKEN = 4.0  # of English with vocabularies of 32,000 pieces and more
Style = Literal["simple", "encyclopaedic", "question_answer", "instruction"]
_KEEP = "Keep every fact, name and number. Answer with the text alone.\n\n{text}"
PROMPTS: dict[str, str] = {
    "simple": "Rewrite the following text in simple words and short sentences that a child can understand. " + _KEEP,
    "encyclopaedic": "Rewrite the following text in clear, neutral prose, as in a good encyclopaedia. " + _KEEP,
    "question_answer": (
        "Turn the following text into questions and answers that cover all of it. Begin every question with "
        '"Question:" and every answer with "Answer:". ' + _KEEP
    ),
    "instruction": (
        "Turn the following text into an instruction that somebody could give, and the full reply to it. Begin with "
        '"Instruction:" and then "Response:". ' + _KEEP
    ),
}
# What small models put around their answer in spite of what they were told.
_PREAMBLE = re.compile(
    r"\A\s*(?:(?:Sure|Certainly|Of course)[,!.][^\n]*\n+|(?:Here(?:'s| is| are)|Below is)[^\n]*:\s*\n+)"
)


class Generator(Protocol):
    """A language model that answers prompts.

    One that draws its tokens, or that stops at some length, has `answers(prompts, seeds)` too, and is asked by that:
    what it draws for a prompt depends on the prompt and its seed, and None stands for an answer that was cut.
    """

    def generate(self, prompts: Sequence[str]) -> list[str]:
        """The answer to each prompt, in order."""
        ...


class GeneratorSpec(Protocol):
    """A frozen value in a config that makes a generator when the stage runs."""

    def build(self) -> Generator:
        """The generator, loaded; ValueError in one line where something is missing."""
        ...


@dataclass(frozen=True, kw_only=True)
class Paraphrase:
    """generator: a spec with `build()`, or a generator itself; it puts prompts into the model's chat template.

    styles: a copy's seed picks one. longest_part: characters of text in one prompt. language: of the texts; None: any.
    gates: those of `Augment` where it names none; questions and instructions are wordier than their text.
    """

    generator: GeneratorSpec | Generator
    styles: tuple[Style, ...] = ("simple", "encyclopaedic")
    longest_part: int = 1500
    language: str | None = "en"
    gates: Gates = Gates(similarity=(0.2, 0.95))

    name: ClassVar[str] = "paraphrase"
    in_driver: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        unknown = [style for style in self.styles if style not in PROMPTS]
        if unknown or not self.styles:
            raise ValueError(f"Paraphrase: styles {self.styles}: expected some of {', '.join(PROMPTS)}")
        limit = getattr(self.generator, "max_new_tokens", None)
        needed = math.ceil(self.longest_part / CHARACTERS_A_TOKEN)
        if limit is not None and limit < needed:
            raise ValueError(
                f"Paraphrase: the generator stops after {limit} tokens, but longest_part={self.longest_part} "
                f"characters are about {needed}: give it DecodeConfig(max_new_tokens={2 * needed})"
            )

    def style(self, seed: int) -> Style:
        """The style that a copy's seed picks."""
        return chance(seed).choice(self.styles)

    def drawn(self, seed: int) -> dict[str, str]:
        """As `Technique` says."""
        return {"style": self.style(seed)}

    @property
    def model(self) -> str:
        """The generator's checkpoint, for the lineage."""
        return str(getattr(self.generator, "checkpoint", type(self.generator).__name__))

    def inputs_key(self) -> Any:
        """What the generator says of the files that it reads; None where it says nothing."""
        key = getattr(self.generator, "inputs_key", None)
        return key() if key else None

    def build(self) -> Paraphraser:
        """The rewriter, with its model loaded."""
        build = getattr(self.generator, "build", None)
        return Paraphraser(self, build() if build else self.generator)


class Paraphraser:
    """`Paraphrase` with its model loaded. All prompts of all requests are handed over at once."""

    def __init__(self, config: Paraphrase, generator: Any):
        self.config, self.generator = config, generator

    def __call__(self, requests: Sequence[Request]) -> list[str | Drop]:
        prompts: list[str] = []
        seeds: list[int] = []
        plans = []
        for request in requests:
            plans.append(self._plan(request, prompts))
            seeds += [derive(request.seed, "part", part) for part in range(len(prompts) - len(seeds))]
        answers = self._ask(prompts, seeds) if prompts else []
        answers = [None if answer is None else clean_answer(answer) for answer in answers]
        return [plan if isinstance(plan, Drop) else _told_again(plan, answers) for plan in plans]

    def _ask(self, prompts: list[str], seeds: list[int]) -> list[str | None]:
        answers = getattr(self.generator, "answers", None)
        return answers(prompts, seeds) if answers else self.generator.generate(prompts)

    def _plan(self, request: Request, prompts: list[str]) -> list[str | int] | Drop:
        """Pieces that stay, and the numbers of prompts whose answers stand between them."""
        if not request.text.strip():
            return Drop("empty_text")
        if self.config.language is not None and (refused := other_language(request, self.config.language)):
            return refused
        style = self.config.style(request.seed)
        plan: list[str | int] = []
        new: list[str] = []
        for text, space, prose in self._parts(request.text):
            if prose and len(text) > self.config.longest_part:
                return Drop("paragraph_too_long", len(text), self.config.longest_part)
            if prose:
                plan += [len(prompts) + len(new), space]
                new.append(PROMPTS[style].format(text=text.strip()))
            else:
                plan.append(text + space)
        if not new:
            return Drop("nothing_to_paraphrase")
        prompts += new
        return plan

    def _parts(self, text: str) -> list[tuple[str, str, bool]]:
        """(text, white space behind it, whether it is prose); paragraphs of prose are joined while they fit."""
        parts: list[tuple[str, str, bool]] = []
        for piece in paragraphs(text):
            prose = is_prose(piece.text)
            if prose and parts and parts[-1][2]:
                longer = parts[-1][0] + parts[-1][1] + piece.text
                if len(longer) <= self.config.longest_part:
                    parts[-1] = (longer, piece.space, True)
                    continue
            parts.append((piece.text, piece.space, prose))
        return parts


def clean_answer(answer: str) -> str:
    """An answer without the sentence that announces it and without quotes around all of it."""
    text = _PREAMBLE.sub("", answer, count=1).strip()
    if len(text) > 1 and text[0] in '"“' and text[-1] in '"”' and not any(mark in text[1:-1] for mark in '"“”'):
        text = text[1:-1].strip()
    return text


def _told_again(plan: list[str | int], answers: list[str | None]) -> str | Drop:
    texts: list[str] = []
    for part in plan:
        text = part if isinstance(part, str) else answers[part]
        if text is None:
            return Drop("answer_cut")
        if isinstance(part, int) and not text:
            return Drop("empty_output")
        texts.append(text)
    return "".join(texts)

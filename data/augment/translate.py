"""Back-translation: into another language and back, through one pivot or several, sentence by sentence.

    BackTranslation(routes=((Command(source="en", target="eo", command=("apertium", "-u", "en-eo")),
                             Command(source="eo", target="en", command=("apertium", "-u", "eo-en"))),))

A translator is a spec with a source and a target language and `build()`: `Command` here pipes sentences through any
program, `models.translate.MarianTranslator` runs a model in JAX. Paragraphs, lists and code stay where they are.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import xxhash

from data.augment.gates import Gates
from data.augment.sentences import is_prose, paragraphs, sentences
from data.augment.technique import Request, chance, other_language
from data.document import Drop

VERSION = 2


class Translator(Protocol):
    """Something that translates."""

    def translate(self, sentences: Sequence[str]) -> list[str]:
        """Each sentence in the target language, in order; "" where nothing came out."""
        ...


class TranslatorSpec(Protocol):
    """A frozen value in a config. source, target: ISO 639-1 codes."""

    @property
    def source(self) -> str:
        """The language that it reads."""
        ...

    @property
    def target(self) -> str:
        """The language that it writes."""
        ...

    def build(self) -> Translator:
        """The translator, loaded; ValueError in one line where something is missing."""
        ...


Route = tuple[TranslatorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class BackTranslation:
    """routes: chains of translators, each from the texts' language and back to it; a copy's seed picks one.

    longest_sentence: characters; a text with a longer one is refused. gates: those of `Augment` where it names none.
    """

    routes: tuple[Route, ...]
    longest_sentence: int = 2000
    gates: Gates = Gates(similarity=(0.25, 0.98))

    name: ClassVar[str] = "back_translation"
    in_driver: ClassVar[bool] = True
    libraries: ClassVar[tuple[str, ...]] = ("sentencex",)

    def __post_init__(self) -> None:
        if not self.routes or not all(self.routes):
            raise ValueError("BackTranslation: routes is empty: give at least one chain of translators")
        for route in self.routes:
            for number, (one, following) in enumerate(zip(route, (*route[1:], route[0])), start=1):
                if one.target != following.source:
                    raise ValueError(
                        f"BackTranslation: translator {number} of a route writes {one.target!r}, but what reads it "
                        f"expects {following.source!r}: the chain must lead back to {route[0].source!r}"
                    )
        if len({route[0].source for route in self.routes}) > 1:
            raise ValueError("BackTranslation: all routes must start from one language")

    @property
    def model(self) -> str:
        """The routes by their languages and programs, for the lineage."""
        return "; ".join(_route_name(route) for route in self.routes)

    def route(self, seed: int) -> int:
        """The number of the route that a copy's seed picks."""
        return chance(seed).randrange(len(self.routes))

    def drawn(self, seed: int) -> dict[str, str]:
        """As `Technique` says."""
        return {"route": _route_name(self.routes[self.route(seed)])} if len(self.routes) > 1 else {}

    def inputs_key(self) -> Any:
        """What each translator says of the files that it reads, in the order of the routes."""
        keys = [getattr(step, "inputs_key", None) for route in self.routes for step in route]
        return [key() if key else None for key in keys]

    def build(self) -> BackTranslator:
        """The rewriter, with each translator loaded once, in however many routes it is."""
        built: dict[int, Translator] = {}
        for route in self.routes:
            for step in route:
                if id(step) not in built:
                    built[id(step)] = step.build()
        return BackTranslator(self, [[built[id(step)] for step in route] for route in self.routes])


@dataclass(frozen=True)
class _Plan:
    """A text taken apart: pieces that stay (str) and sentences to translate, by their number."""

    parts: list[str | int]
    route: int


class BackTranslator:
    """`BackTranslation` with its translators ready. All sentences of all requests go through each of them together."""

    def __init__(self, config: BackTranslation, routes: list[list[Translator]]):
        self.config, self.routes = config, routes

    def __call__(self, requests: Sequence[Request]) -> list[str | Drop]:
        found: list[list[str]] = [[] for _ in self.routes]
        plans = [self._take_apart(request, found) for request in requests]
        for number, route in enumerate(self.routes):
            # every sentence once: a pure function of the sentence needs no second call
            distinct = list(dict.fromkeys(found[number]))
            texts = distinct
            for translator in route if distinct else ():
                texts = _through(translator, texts)
            back = dict(zip(distinct, texts, strict=True))
            found[number] = [back[sentence] for sentence in found[number]]
        return [plan if isinstance(plan, Drop) else _put_together(plan, found[plan.route]) for plan in plans]

    def _take_apart(self, request: Request, found: list[list[str]]) -> _Plan | Drop:
        if not request.text.strip():
            return Drop("empty_text")
        language = self.config.routes[0][0].source
        refused = other_language(request, language)
        if refused is not None:
            return refused
        route = self.config.route(request.seed)
        parts: list[str | int] = []
        wanted: list[str] = []
        for paragraph in paragraphs(request.text):
            if is_prose(paragraph.text):
                for piece in sentences(paragraph.text, language):
                    sentence = " ".join(piece.text.split())
                    if len(sentence) > self.config.longest_sentence:
                        return Drop("sentence_too_long", len(sentence), self.config.longest_sentence)
                    if sentence:
                        parts.append(len(found[route]) + len(wanted))
                        wanted.append(sentence)
                    parts.append(piece.space)
            else:
                parts.append(paragraph.text)
            parts.append(paragraph.space)
        if not wanted:
            return Drop("nothing_to_translate")
        found[route] += wanted
        return _Plan(parts, route)


def _route_name(route: Route) -> str:
    """Languages and what translates between them: "en eo en (apertium -u en-eo, apertium -u eo-en)"."""
    steps = [str(getattr(step, "model", None) or getattr(step, "checkpoint", type(step).__name__)) for step in route]
    return f"{' '.join([route[0].source, *(step.target for step in route)])} ({', '.join(steps)})"


def _through(translator: Translator, texts: list[str]) -> list[str]:
    """Translations in order; what is empty stays empty and is not asked for."""
    filled = [text for text in texts if text]
    translated = iter(translator.translate(filled))
    return [" ".join(next(translated).split()) if text else "" for text in texts]


def _put_together(plan: _Plan, found: list[str]) -> str | Drop:
    texts = [part if isinstance(part, str) else found[part] for part in plan.parts]
    if any(not text for part, text in zip(plan.parts, texts) if isinstance(part, int)):
        return Drop("empty_translation")
    return "".join(texts)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A program that reads a sentence a line and writes its translation on the same line.

    command: the program and its arguments; never a shell. seconds: that a call may take for `lines` sentences.
    """

    source: str
    target: str
    command: tuple[str, ...]
    lines: int = 2000
    seconds: float = 600.0

    @property
    def model(self) -> str:
        """What translates, for the lineage."""
        return " ".join(self.command)

    @property
    def program(self) -> str:
        """Where the program lies; ValueError where it is not installed."""
        if not self.command:
            raise ValueError("Command: command is empty: give a program and its arguments")
        path = shutil.which(self.command[0])
        if path is None:
            raise ValueError(f"Command: no program {self.command[0]!r} on this machine; install it or give its path")
        return path

    def inputs_key(self) -> Any:
        """The program's own bytes. Data files of its own that it reads are not part of it."""
        with open(self.program, "rb") as file:  # noqa: PTH123 (a path from shutil.which)
            return xxhash.xxh3_64_hexdigest(file.read())

    def build(self) -> Command:
        """Itself, after a look for the program; ValueError where it is not installed."""
        self.program  # noqa: B018 (refuses here, not after hours of other stages)
        return self

    def translate(self, sentences: Sequence[str]) -> list[str]:
        """As `Translator.translate`. ValueError where the program fails or loses count of the lines."""
        out: list[str] = []
        for start in range(0, len(sentences), self.lines):
            out += self._call([" ".join(sentence.split()) for sentence in sentences[start : start + self.lines]])
        return out

    def _call(self, lines: list[str]) -> list[str]:
        name = " ".join(self.command)
        try:
            done = subprocess.run(
                [self.program, *self.command[1:]],
                input="".join(f"{line}\n" for line in lines).encode("utf-8", "replace"),
                capture_output=True,
                timeout=self.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{name}: not done with {len(lines)} sentences after {self.seconds:g} s") from None
        if done.returncode:
            said = " ".join(done.stderr.decode("utf-8", "replace").split())[:200]
            raise ValueError(f"{name}: ended with code {done.returncode}: {said or 'no message'}")
        found = done.stdout.decode("utf-8", "replace").split("\n")
        if found and not found[-1]:
            found.pop()
        if len(found) != len(lines):
            raise ValueError(f"{name}: gave {len(found)} lines for {len(lines)} sentences: expected one for each")
        return [line.strip() for line in found]

"""Prompts to texts: `models.decode` with a tokenizer around it. The tokenizer is an argument, never looked up.

    generator = TextGenerator(Decoder(model), tokenizer, DecodeConfig(max_new_tokens=64))
    generator.generate(["The capital of France is"])

A prompt is a text, or ids where the caller has encoded it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from models.decode import DecodeConfig, Decoder, generate, stream

UNFINISHED = "\ufffd"  # what a tokenizer shows for the first bytes of a character whose rest is still to come
TAIL = 32  # tokens of a prompt that new ones are decoded after


@runtime_checkable
class PromptTokenizer(Protocol):
    """What generation needs of a tokenizer (models.checkpoints.tokenizer.TextTokenizer is one)."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a text."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a prompt, with BOS where the model expects it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ...


Prompt = str | Sequence[int]


class TextGenerator:
    """A model, its tokenizer and settings as the `generate(prompts) -> texts` that data stages take.

    Any number of prompts may be handed over at once: rows refill as texts end.
    """

    def __init__(self, decoder: Decoder, tokenizer: PromptTokenizer, config: DecodeConfig):
        self.decoder, self.tokenizer, self.config = decoder, tokenizer, config

    def generate(self, prompts: Sequence[Prompt]) -> list[str]:
        """The text that follows each prompt, in order."""
        return generate_texts(self.decoder, self.tokenizer, prompts, self.config)


def generate_texts(
    decoder: Decoder, tokenizer: PromptTokenizer, prompts: Sequence[Prompt], config: DecodeConfig
) -> list[str]:
    """The text that follows each prompt, cut before the first stop string. The tokenizer's stop ids end texts too."""
    config = with_stop_ids(config, tokenizer)

    ids = [encoded(tokenizer, prompt) for prompt in prompts]
    texts = [text_after(tokenizer, prompt) for prompt in ids]

    def finished(request: int, so_far: list[int]) -> bool:
        return cut(texts[request](so_far), config.stop_strings)[1]

    found = generate(decoder, ids, config, finished if config.stop_strings else None)
    return [cut(text(generation.ids), config.stop_strings)[0] for text, generation in zip(texts, found)]


def encoded(tokenizer: PromptTokenizer, prompt: Prompt) -> Sequence[int]:
    """The ids of a prompt."""
    return tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt


def text_after(tokenizer: PromptTokenizer, prompt: Sequence[int]) -> Callable[[Sequence[int]], str]:
    """What turns new ids into the text that follows the prompt.

    They are decoded after the prompt's last ids, which are then cut off: a SentencePiece decoder drops the space that a
    text begins with, so new ids alone would lose the one between the prompt and them.
    """
    tail = list(prompt[-TAIL:])
    if tokenizer.decode(tail)[:1] in ("", UNFINISHED):  # special tokens alone, or it begins inside of a character
        tail = list(prompt)
    before = [tokenizer.decode(tail)]
    if before[0].endswith(
        UNFINISHED
    ):  # a character that new ids end; the bytes before it may be shown as unfinished too
        before += [tokenizer.decode(tail[: max(0, len(tail) - less)]) for less in range(1, 4)]

    def text(ids: Sequence[int]) -> str:
        whole = tokenizer.decode([*tail, *ids])
        return whole[max(shared_start(part, whole) for part in before) :]

    return text


def shared_start(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def stream_text(decoder: Decoder, tokenizer: PromptTokenizer, prompt: Prompt, config: DecodeConfig) -> Iterator[str]:
    """The text that follows one prompt, piece by piece; together the pieces are what `generate_texts` returns.

    A piece is held back while it could still turn into a stop string or end in half of a character.
    """
    config = with_stop_ids(config, tokenizer)
    held = max((len(text) for text in config.stop_strings), default=1) - 1
    start, ids = encoded(tokenizer, prompt), list[int]()
    text_of, shown = text_after(tokenizer, start), ""
    for event in stream(decoder, [start], config):
        ids.extend(event.ids)
        text, stopped = cut(text_of(ids), config.stop_strings)
        last = stopped or event.reason is not None
        ready = text if last else text.rstrip(UNFINISHED)[: max(0, len(text) - held)]
        if len(ready) > len(shown):
            yield ready[len(shown) :]
            shown = ready
        if last:
            return


def with_stop_ids(config: DecodeConfig, tokenizer: PromptTokenizer) -> DecodeConfig:
    """The config with the tokenizer's stop ids beside its own."""
    return replace(config, stop_ids=tuple(dict.fromkeys((*config.stop_ids, *tokenizer.stop_ids))))


def cut(text: str, stop_strings: Sequence[str]) -> tuple[str, bool]:
    """(the text before the first stop string, whether there was one)."""
    places = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)

"""Prompts to texts: `models.decode` with a tokenizer around it. The tokenizer is an argument, never looked up.

    generator = TextGenerator(Decoder(model), tokenizer, DecodeConfig(max_new_tokens=64))
    generator.generate(["The capital of France is"])

A prompt is a text, or ids where the caller has encoded it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from models.decode import DecodeConfig, Decoder, generate, stream

UNFINISHED = "\ufffd"  # what a tokenizer shows for the first bytes of a character whose rest is still to come


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

    def finished(_: int, so_far: list[int]) -> bool:
        return cut(tokenizer.decode(so_far), config.stop_strings)[1]

    ids = [encoded(tokenizer, prompt) for prompt in prompts]
    found = generate(decoder, ids, config, finished if config.stop_strings else None)
    return [cut(tokenizer.decode(generation.ids), config.stop_strings)[0] for generation in found]


def encoded(tokenizer: PromptTokenizer, prompt: Prompt) -> Sequence[int]:
    """The ids of a prompt."""
    return tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt


def stream_text(decoder: Decoder, tokenizer: PromptTokenizer, prompt: Prompt, config: DecodeConfig) -> Iterator[str]:
    """The text that follows one prompt, piece by piece; together the pieces are what `generate_texts` returns.

    A piece is held back while it could still turn into a stop string or end in half of a character.
    """
    config = with_stop_ids(config, tokenizer)
    held = max((len(text) for text in config.stop_strings), default=1) - 1
    ids: list[int] = []
    shown = ""
    for event in stream(decoder, [encoded(tokenizer, prompt)], config):
        ids.extend(event.ids)
        text, stopped = cut(tokenizer.decode(ids), config.stop_strings)
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

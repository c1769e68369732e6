"""Prompts to texts: `models.decode` with a tokenizer around it. The tokenizer is an argument, never looked up.

    generator = TextGenerator(Decoder(model), tokenizer, DecodeConfig(max_new_tokens=64))
    generator.generate(["The capital of France is"])

A prompt is a text, or ids where the caller has encoded it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from models.decode import Batch, DecodeConfig, Decoder, Reason, make_requests, stream

UNFINISHED = "\ufffd"  # what a tokenizer shows for the first bytes of a character whose rest is still to come
WHOLE = ("stop", "stop_string")  # why a text ends that was not cut
SEEDS = 2**31  # a request's number, which its draws are keyed by, is a signed 32-bit one on the device
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

    Any number of prompts may be handed over at once: rows refill as texts end. adapter: number of the one that acts on
    prompts for which none is named, -1 for the base alone.
    """

    def __init__(self, decoder: Decoder, tokenizer: PromptTokenizer, config: DecodeConfig, *, adapter: int = 0):
        self.decoder, self.tokenizer, self.config, self.adapter = decoder, tokenizer, config, adapter

    def generate(self, prompts: Sequence[Prompt], adapters: Sequence[int] | None = None) -> list[str]:
        """The text that follows each prompt, in order. adapters: number of the adapter that acts on each."""
        adapters = [self.adapter] * len(prompts) if adapters is None else adapters
        return generate_texts(self.decoder, self.tokenizer, prompts, self.config, adapters)

    def answers(self, prompts: Sequence[Prompt], seeds: Sequence[int] | None = None) -> list[str | None]:
        """As `generate`, but None for a text that was cut at its longest; seeds as in `generate_with_reasons`."""
        adapters = [self.adapter] * len(prompts)
        found = generate_with_reasons(self.decoder, self.tokenizer, prompts, self.config, seeds, adapters)
        return [text if reason in WHOLE else None for text, reason in found]


def generate_texts(
    decoder: Decoder,
    tokenizer: PromptTokenizer,
    prompts: Sequence[Prompt],
    config: DecodeConfig,
    adapters: Sequence[int] | None = None,
) -> list[str]:
    """The text that follows each prompt, cut before the first stop string. The tokenizer's stop ids end texts too."""
    return [text for text, _ in generate_with_reasons(decoder, tokenizer, prompts, config, adapters=adapters)]


def generate_with_reasons(
    decoder: Decoder,
    tokenizer: PromptTokenizer,
    prompts: Sequence[Prompt],
    config: DecodeConfig,
    seeds: Sequence[int] | None = None,
    adapters: Sequence[int] | None = None,
) -> list[tuple[str, Reason]]:
    """The texts of `generate_texts`, and why each of them ends.

    seeds: what a prompt's draws depend on, beside the config's own seed; None for its place among the prompts. A text
    is then a function of its prompt and seed, whatever prompts are handed over with it. adapters: number of the one
    that acts on each prompt, -1 for the base alone; None: the first, if there is one.
    """
    config = with_stop_ids(config, tokenizer)
    ids = [encoded(tokenizer, prompt) for prompt in prompts]
    texts = [text_after(tokenizer, prompt) for prompt in ids]
    keys = range(len(ids)) if seeds is None else [seed % SEEDS for seed in seeds]
    out: list[tuple[str, Reason]] = [("", "stop")] * len(ids)
    for places in rounds(keys):
        place_of = {keys[place]: place for place in places}

        def finished(key: int, so_far: list[int], place_of: dict[int, int] = place_of) -> bool:
            return cut(texts[place_of[key]](so_far), config.stop_strings)[1]

        chosen = None if adapters is None else [adapters[place] for place in places]
        requests = make_requests(decoder, [ids[place] for place in places], config, chosen)
        requests = [replace(request, number=keys[place]) for request, place in zip(requests, places)]
        news: dict[int, list[int]] = {place: [] for place in places}
        for event in Batch(decoder, requests, config, finished if config.stop_strings else None).events():
            place = place_of[event.request]
            news[place].extend(event.ids)
            if event.reason is not None:
                out[place] = cut(texts[place](news[place]), config.stop_strings)[0], event.reason
    return out


def rounds(keys: Sequence[int]) -> list[list[int]]:
    """Places of the keys, so that no key is twice in one round: one round, but for the same prompt and seed again."""
    found: list[list[int]] = []
    count: Counter[int] = Counter()
    for place, key in enumerate(keys):
        if count[key] == len(found):
            found.append([])
        found[count[key]].append(place)
        count[key] += 1
    return found


def encoded(tokenizer: PromptTokenizer, prompt: Prompt) -> Sequence[int]:
    """The ids of a prompt."""
    return tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt


def text_after(tokenizer: PromptTokenizer, prompt: Sequence[int]) -> Callable[[Sequence[int]], str]:
    """What turns new ids into the text that follows the prompt.

    They are decoded after the prompt's last ids, which are then cut off: a SentencePiece decoder drops the space that a
    text begins with, so new ids alone would lose the one between the prompt and them.
    """
    tail = list(prompt[-TAIL:])
    if tokenizer.decode(tail)[:1] in ("", UNFINISHED):  # special tokens alone, or a start inside of a character
        tail = list(prompt)
    before = [tokenizer.decode(tail)]
    if before[0].endswith(UNFINISHED):
        # New ids may end the prompt's last character, which then is new text: the prompt ends before its first byte,
        # at most three ids back.
        before += [tokenizer.decode(tail[: max(0, len(tail) - less)]) for less in range(1, 4)]

    def text(ids: Sequence[int]) -> str:
        whole = tokenizer.decode([*tail, *ids])
        return whole[max(shared_start(part, whole) for part in before) :]

    return text


def shared_start(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def stream_text(
    decoder: Decoder, tokenizer: PromptTokenizer, prompt: Prompt, config: DecodeConfig, adapter: int = 0
) -> Iterator[str]:
    """The text that follows one prompt, piece by piece; together the pieces are what `generate_texts` returns.

    A piece is held back while it could still turn into a stop string or end in half of a character.
    """
    config = with_stop_ids(config, tokenizer)
    held = max((len(text) for text in config.stop_strings), default=1) - 1
    start, ids = encoded(tokenizer, prompt), list[int]()
    text_of, shown = text_after(tokenizer, start), ""
    for event in stream(decoder, [start], config, adapters=[adapter]):
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

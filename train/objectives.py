"""What a run minimises, as a value of its config: `objective=NextToken()` or `objective=Preference(beta=0.1)`.

A value has a property and three methods: `draws` says that rows need keys of their own, `make(options)` gives the
function that `make_train_step` takes, `nats(options)` the one that held-out bits per byte come from, and
`check(lora, paired, adapters)` refuses data and adapters that it cannot be computed from.
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

    def check(self, lora: LoRA | None, *, paired: bool, adapters: tuple[str, ...] = ()) -> None:
        """ValueError where the data are preferences, whose rejected answers would be learned too; as of the next."""
        check_adapters(lora, adapters)
        if paired:
            raise ValueError("the data are preferences (chosen, rejected): set objective=Preference()")


def check_adapters(lora: LoRA | None, adapters: tuple[str, ...]) -> None:
    """ValueError where the adapters that rows choose (`Loader.adapters`) are not those that are trained.

    Without a choice the first alone would learn; and what several share, biases and whole parameters, would be changed
    by the rows of all of them.
    """
    names = () if lora is None else lora.names
    if adapters != names and (adapters or len(names) > 1):
        raise ValueError(
            f"lora.names={names}, and loader.adapters names {adapters}: for several adapters in one run give both, in "
            "the same order, loader.adapters=(('source', 'name'), ...); for one, neither"
        )
    if lora is not None and len(names) > 1 and (lora.bias != "none" or lora.also_train):
        raise ValueError(
            f"lora.names={names} with bias={lora.bias!r}, also_train={lora.also_train}: these belong to the base, "
            "which several adapters share; train each adapter in a run of its own"
        )

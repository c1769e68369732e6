"""How many parameters a run has and trains, and the bytes in which they rest."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from models.trainable import is_adapter
from train.state import TrainState, whole_params


def parameter_counts(state: TrainState) -> tuple[int, int]:
    """(trained, all) parameters. A quantised matrix counts the weights that it stands for, not its bytes or scales."""
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    whole = named_leaves(whole_params(state.params, state.frozen))
    return trained, sum(logical_size(path, leaf) for path, leaf in whole)


def base_size(state: TrainState) -> int:
    """Parameters of the model without adapters: what the FLOP of a token are counted from."""
    whole = named_leaves(whole_params(state.params, state.frozen))
    return sum(logical_size(path, leaf) for path, leaf in whole if not is_adapter(path))


def logical_size(path: str, leaf: Any) -> int:
    """Weights that one array stands for."""
    if ".parts." not in path:
        return leaf.size
    part = path.rsplit(".", 1)[1]
    return leaf.size * {"packed": 2, "codes": 1}.get(part, 0)  # the others are scales


def trainable_line(state: TrainState) -> str:
    """The line that PEFT prints: `trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622`."""
    trained, total = parameter_counts(state)
    return f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}"


def weight_bytes(state: TrainState, size: Callable[[Any], int]) -> dict[str, int]:
    """Bytes of the weights by kind; `size` gives those of one array, whose dtype is what it truly rests in.

    Nothing here is of a type below one byte: 4-bit weights are packed two in one, so that their sizes are honest.
    """
    frozen = list(named_leaves(state.frozen))
    quantised = sum(size(leaf) for path, leaf in frozen if ".parts." in path)
    return {
        "parameters": sum(size(leaf) for leaf in jax.tree.leaves(state.params)),
        "frozen, quantised": quantised,
        "frozen, the rest": sum(size(leaf) for _, leaf in frozen) - quantised,
    }


def bits_a_weight(state: TrainState) -> float | None:
    """Bits that a quantised weight takes, its share of the scales included; None where nothing is quantised."""
    parts = [(path, leaf) for path, leaf in named_leaves(state.frozen) if ".parts." in path]
    weights = sum(logical_size(path, leaf) for path, leaf in parts)
    return 8 * sum(leaf.size * leaf.dtype.itemsize for _, leaf in parts) / weights if weights else None


def named_leaves(tree: Any) -> Iterable[tuple[str, Any]]:
    """(dotted path, array) of every leaf of nested dicts."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield ".".join(str(key.key) for key in path), leaf

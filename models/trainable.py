"""Which parameters of a model are trained: adapters, what their settings add, and what is not frozen."""

import re
from collections.abc import Collection, Iterable

from models.lora import LoRA, check_patterns, matches


def trainable_paths(paths: Iterable[str], lora: LoRA | None = None, freeze: tuple[str, ...] = ()) -> frozenset[str]:
    """Which parameters are trained, of those at the given dotted paths; never the numbers of a quantised matrix.

    Without lora all are but those that `freeze` matches; with it adapters, and what its `bias` and `also_train` add.
    Errors: ValueError where a pattern or `bias` matches nothing that can be trained, or nothing is left to train.
    """
    paths = list(paths)
    check_patterns("freeze", freeze, paths)
    quantised = {path[: path.index(".parts.")] for path in paths if ".parts." in path}
    chosen = {path for path in paths if ".parts." not in path}
    if lora is not None:
        chosen = chosen_with_adapters(chosen, lora, quantised)
    chosen = {path for path in chosen if not any(matches(pattern, path) for pattern in freeze)}
    if not chosen:
        raise ValueError(f"freeze={freeze} leaves no parameter to train")
    return frozenset(chosen)


def chosen_with_adapters(paths: Collection[str], lora: LoRA, quantised: Iterable[str]) -> set[str]:
    """What `lora` trains of the float parameters; quantised: the paths of matrices that are not float."""
    whole = [path for path in paths if not is_adapter(path)]
    for pattern in lora.also_train:
        hidden = [path for path in quantised if matches(pattern, path) or matches(pattern, f"{path}.kernel")]
        if hidden and not any(matches(pattern, path) for path in whole):
            raise ValueError(f"lora.also_train: {pattern!r} is {min(hidden)}, which is quantised: adapt it instead")
    check_patterns("lora.also_train", lora.also_train, whole)
    biases = trained_biases(paths, lora)
    if lora.bias != "none" and not biases:
        raise ValueError(f"lora.bias={lora.bias!r} finds no bias in this model to train: set bias='none'")
    return biases | {path for path in paths if is_adapter(path) or any(matches(p, path) for p in lora.also_train)}


def trained_biases(paths: Collection[str], lora: LoRA) -> set[str]:
    """The biases that `lora.bias` trains: none, all, or those of projections with an adapter."""
    biases = {path for path in paths if path.endswith(".bias") and not is_adapter(path)}
    adapted = {path[: path.index(".lora.")] for path in paths if ".lora." in path}
    kept = {"none": set(), "all": biases, "lora_only": {b for b in biases if b.removesuffix(".bias") in adapted}}
    return kept[lora.bias]


def is_adapter(path: str) -> bool:
    """Whether the parameter at a dotted path belongs to an adapter."""
    return re.search(r"(^|\.|_)lora\.", path) is not None

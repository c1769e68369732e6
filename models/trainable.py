"""Which parameters of a model are trained: adapters, what their settings add, and what is not frozen."""

import re
from collections.abc import Iterable

from models.lora import LoRA, check_patterns, matches


def trainable_paths(paths: Iterable[str], lora: LoRA | None = None, freeze: tuple[str, ...] = ()) -> frozenset[str]:
    """Which parameters are trained, of those at the given dotted paths.

    Without lora all are but those that `freeze` matches; with it adapters, and what its `bias` and `also_train` add.
    Errors: ValueError where a pattern matches nothing, or nothing is left to train.
    """
    paths = list(paths)
    check_patterns("freeze", freeze, paths)
    chosen = set(paths)
    if lora is not None:
        check_patterns("lora.also_train", lora.also_train, [path for path in paths if not is_adapter(path)])
        adapted = {path[: path.index(".lora.")] for path in paths if ".lora." in path}
        biases = {path for path in paths if path.endswith(".bias") and not is_adapter(path)}
        if lora.bias == "lora_only":
            biases = {path for path in biases if path.removesuffix(".bias") in adapted}
        chosen = {path for path in paths if is_adapter(path) or any(matches(p, path) for p in lora.also_train)}
        chosen |= biases if lora.bias != "none" else set()
    chosen = {path for path in chosen if not any(matches(pattern, path) for pattern in freeze)}
    if not chosen:
        raise ValueError(f"freeze={freeze} leaves no parameter to train")
    return frozenset(chosen)


def is_adapter(path: str) -> bool:
    """Whether the parameter at a dotted path belongs to an adapter."""
    return re.search(r"(^|\.|_)lora\.", path) is not None

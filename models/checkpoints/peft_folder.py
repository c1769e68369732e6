"""A PEFT adapter folder as it lies on disk: its settings, its tensors, and what makes both usable here.

    config, tensors = read_adapter(Path("adapter"))
    adapter_base(folder), adapter_quantization(folder)      what the adapter says of its base

Beside PEFT's two files ours have a third, sluice_adapter.json: how the base was quantised, and a checksum of each of
its parameters, so that an adapter never acts on another base without a word.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoints.location import read_object
from models.checkpoints.tensors import open_safetensors
from models.quantize import NF4, Int8Weights, Quantization

CONFIG_NAME, WEIGHTS_NAME, ORIGIN_NAME = "adapter_config.json", "adapter_model.safetensors", "sluice_adapter.json"
PREFIX = "base_model.model."
ADAPTER_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+?)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?"
)
READ = {  # settings of adapter_config.json that change the function, with the values that are read
    "bias": ("none", "all", "lora_only"),
    "peft_type": ("LORA",),
}
REFUSED = ("use_bdlora", "alora_invocation_tokens", "target_parameters", "trainable_token_indices", "megatron_config",
           "layer_replication", "lora_bias", "arrow_config", "monteclora_config", "velora_config", "kasa_config",
           "use_qalora")  # fmt: skip
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # beginnings of init_lora_weights; the others keep it


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(adapter_config.json, the tensors by name); ValueError, one line, for a folder that cannot be used."""
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).exists():
            pickle = (folder / "adapter_model.bin").exists()
            hint = "; adapter_model.bin is a pickle, which can run code and is never loaded" if pickle else ""
            raise ValueError(f"{folder} has no {name}: expected a PEFT adapter folder{hint}")
    try:
        config = {"r": 8, "lora_alpha": 8} | json.loads((folder / CONFIG_NAME).read_text())  # PEFT's own defaults
    except (ValueError, TypeError):
        raise ValueError(f"{folder / CONFIG_NAME} is no JSON object: expected the settings of a PEFT adapter") from None
    for name, values in READ.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f"{folder}: {name}={config[name]!r} is not supported; expected {' or '.join(values)}")
    for name in REFUSED:
        if config.get(name):
            raise ValueError(f"{folder}: {name}={config[name]!r} is not supported")
    if str(init := config.get("init_lora_weights", True)).lower().startswith(CHANGES_BASE):
        raise ValueError(
            f"{folder}: init_lora_weights={init!r} changed the base that this adapter was trained on, and the folder "
            "does not have that: save it by PEFT's path_initial_model_for_weight_conversion, or take the merged model"
        )
    _check_settings(folder, config)
    return config, open_safetensors(folder / WEIGHTS_NAME)


def _check_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """ValueError where a number or a pattern of adapter_config.json is none."""
    rank, alpha, dropout = config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0)
    fitting = {
        "r": isinstance(rank, int) and rank > 0,
        "lora_alpha": isinstance(alpha, int | float) and alpha != 0,  # 0: the adapter does nothing, whatever it learned
        "lora_dropout": isinstance(dropout, int | float) and 0 <= dropout < 1,
    }
    if wrong := [name for name, fits in fitting.items() if not fits]:
        raise ValueError(
            f"{folder / CONFIG_NAME}: {wrong[0]}={config[wrong[0]]!r} is no number that an adapter can have"
        )
    patterns = [name for name in ("target_modules", "exclude_modules") if isinstance(config.get(name), str)]
    for pattern in [*(config[name] for name in patterns), *(config.get("alpha_pattern") or {})]:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{folder / CONFIG_NAME}: {pattern!r} is no regular expression: {error}") from None


def read_origin(folder: Path) -> dict[str, Any]:
    """sluice_adapter.json; {} where PEFT wrote the folder. ValueError where it is no JSON object."""
    return read_object(folder / ORIGIN_NAME)


def adapter_quantization(folder: Path) -> Quantization | None:
    """What the base of a folder's adapter was quantised with; None where it was float, or PEFT wrote it."""
    found = read_origin(folder).get("quantization")
    if not found:
        return None
    kinds: dict[Any, Any] = {"NF4": NF4, "Int8Weights": Int8Weights}
    kind = kinds.get(found.get("type")) if isinstance(found, dict) else None
    if kind is None or not found.keys() <= {"type", *(field.name for field in dataclasses.fields(kind))}:
        raise ValueError(
            f"{folder / ORIGIN_NAME}: quantization={found!r} is not known here: written by another version?"
        )
    return kind(**{name: value for name, value in found.items() if name != "type"})


def adapter_base(folder: Path) -> str:
    """Where the base of a folder's adapter lies, as a location that loads here; "" where the folder does not say.

    PEFT names a repository of the hub as it names a folder: org/name.
    """
    config, _ = read_adapter(folder)
    base = read_origin(folder).get("base") or config.get("base_model_name_or_path") or ""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists():
        return f"hf:{base}" + (f"@{config['revision']}" if config.get("revision") else "")
    return base


def check_base(folder: Path, sums: Mapping[str, int]) -> None:
    """ValueError, naming a parameter, where a base is not the one that a folder's adapter was trained on.

    sums: `models.checkpoints.fingerprint.checksums` of it. A parameter that only one of the two knows is not compared:
    a quantised base has none of its projections, and PEFT's own folders have nothing.
    """
    known = read_origin(folder).get("base_checksums") or {}
    if other := [path for path in known if path in sums and known[path] != sums[path]]:
        raise ValueError(
            f"{folder} was trained on another base: {other[0]} differs here; give the base that it names "
            f"({read_origin(folder).get('base') or 'none'})"
        )


def check_keys(folder: Path, config: Mapping[str, Any], keys: Iterable[str], modules: Collection[str]) -> None:
    """ValueError naming a tensor that the settings ask for and the file lacks, or that they say nothing of.

    modules: everything of the base that can have an adapter, by PEFT's names.
    """
    keys = list(keys)
    parts: dict[str, set[str]] = {}
    for key in keys:
        if match := ADAPTER_KEY.fullmatch(key):
            parts.setdefault(match["module"], set()).add(match["part"])
    missing = [f"any tensor of {module}" for module in modules if module not in parts and _targeted(config, module)]
    for module, found in parts.items():
        halves = {"lora_embedding_A", "lora_embedding_B"} if "lora_embedding_A" in found else {"lora_A", "lora_B"}
        expected = halves | ({"lora_magnitude_vector"} if config.get("use_dora") else set())
        missing += [f"{PREFIX}{module}.{part}" for part in sorted(expected - found)]
        if unexpected := sorted(found - expected):
            raise ValueError(f"{folder} holds {PREFIX}{module}.{unexpected[0]}, which {CONFIG_NAME} does not ask for")
    for name in config.get("modules_to_save") or ():
        if not any(re.search(rf"(^|\.){re.escape(name)}\.", key) for key in keys):
            missing.append(f"any tensor of {name}")
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{folder} lacks {missing[0]}, which {CONFIG_NAME} asks for{more}: it is not whole")


def _targeted(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT would put an adapter on a module (peft 0.21, check_target_module_exists)."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or ()
    if targets is None or _named(excluded, module):  # None: PEFT's own choice by family
        return False
    if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in config.get("modules_to_save") or ()):
        return False
    if targets == "all-linear":
        return re.search(r"\.\d+\.", module) is not None
    if not _named(targets, module):
        return False
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    number = re.search(r"\.(\d+)\.", module)
    return number is not None and int(number[1]) in (layers if isinstance(layers, list) else [layers])


def _named(names: str | Iterable[str], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names)

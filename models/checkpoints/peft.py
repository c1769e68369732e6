"""Adapters in and out of PEFT's folder: adapter_config.json and adapter_model.safetensors (keys of peft 0.21).

    model, lora = load_peft(Path("adapter"), model)          theirs, or ours, onto a base
    save_peft(model, lora, Path("adapter"))                  models.checkpoints.peft_save: what PeftModel loads

    base_model.model.MODULE.lora_A.weight [R, I], .lora_B.weight [O, R]             a' and b' of a projection
    base_model.model.MODULE.lora_embedding_A [R, V], .lora_embedding_B [D, R]       of the token table
    base_model.model.MODULE.lora_magnitude_vector [O]                               DoRA
    base_model.model.MODULE.weight, .bias, .base_layer.bias                         parameters that are trained whole

MODULE is the name that the family gives the matrix (models/checkpoints/names.py). Shapes: R rank, I and O the sides of
a projection, V vocabulary, D embed, A adapters, L layers.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from models.adapter import Adapter
from models.checkpoints.families import write_config
from models.checkpoints.fingerprint import checksums
from models.checkpoints.names import HF_TABLES, Rule
from models.checkpoints.peft_folder import ADAPTER_KEY, PREFIX, check_base, check_keys, read_adapter, read_origin
from models.checkpoints.weights import parameter_paths
from models.lora import LoRA, adaptable, plain, without_lora
from models.quantize import QuantizedLinear
from models.trainable import trained_biases
from models.transformer import CausalLM


def family_table(model: CausalLM) -> Mapping[str, Rule]:
    """How the model's family names its tensors; ValueError for a model whose layers are apart."""
    if isinstance(model.layers, nnx.List):
        raise ValueError("PEFT folders go with a stacked model, as it is loaded, not with an unstacked one")
    return HF_TABLES[write_config(model.config)["model_type"]]


def quantization_of(model: CausalLM) -> dict[str, Any] | None:
    """How a model's base is quantised, {"type": "NF4", "block": 64, ...}; None for a float one."""
    found = {module.config for _, module in nnx.iter_modules(model) if isinstance(module, QuantizedLinear)}
    return next(({"type": type(c).__name__, **dataclasses.asdict(c)} for c in found), None)


def matrix_name(path: str) -> str:
    """The parameter that an adapter's path stands for."""
    return path if path == "embedding" else f"{path}.kernel"


def load_peft(folder: Path, model: CausalLM, *, other_base: bool = False) -> tuple[CausalLM, LoRA]:
    """(the stacked model with the adapter of a folder, its settings); arrays of the base are shared.

    other_base: take an adapter that was trained on another base, or on another quantisation of it.
    Errors: ValueError, one line, for an adapter of another base, shape or kind.
    """
    config, tensors = read_adapter(folder)
    trained_on = read_origin(folder).get("quantization", quantization_of(model))
    if trained_on != quantization_of(model) and not other_base:
        raise ValueError(
            f"{folder} was trained on a base in {(trained_on or {}).get('type', 'float')} ({trained_on}), this one is "
            f"in {(quantization_of(model) or {}).get('type', 'float')}: quantise it alike (in Python, other_base=True "
            "takes it as it is)"
        )
    table, model = family_table(model), without_lora(model)
    places = {plain(path): module for path, module in adaptable(model).items()}
    by_module: dict[str, list[str]] = {}
    for path in places:
        if (rule := table.get(matrix_name(path))) is not None:
            by_module.setdefault(rule.name.removesuffix(".weight"), []).append(path)
    known = {_spelled(module, layer): (module, layer) for module in by_module for layer in _numbers(module, model)}
    found: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    rest: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        match = ADAPTER_KEY.fullmatch(key)
        if match is None:
            rest[key.removeprefix(PREFIX)] = value
            continue
        if match["module"] not in known:
            raise ValueError(f"{folder} adapts {match['module']}, which this base does not have: it belongs to another")
        module, layer = known[match["module"]]
        found.setdefault(module, {}).setdefault(layer, {})[match["part"].replace("embedding_", "")] = value
    check_keys(folder, config, tensors, known)
    lora = _settings(config, [path for module in found for path in by_module[module]])
    ranks = {}
    for module, layers in found.items():
        for path in by_module[module]:
            ranks[path] = _attach(model, path, places[path], module, layers, table, config, lora, folder)
    lora = dataclasses.replace(
        lora, rank_pattern=tuple((path, r) for path, r in sorted(ranks.items()) if r != lora.rank)
    )
    if not other_base:
        check_base(folder, checksums(model))
    model, also = _load_whole(model, rest, table, folder)
    if not trained_biases(parameter_paths(nnx.state(model, nnx.Param)), lora):  # PEFT takes "all" where there is none
        lora = dataclasses.replace(lora, bias="none")
    return model, dataclasses.replace(lora, also_train=also)


def _numbers(module: str, model: CausalLM) -> range:
    return range(model.config.num_layers if "{i}" in module else 1)


def _spelled(module: str, layer: int) -> str:
    return module.replace("{i}", str(layer))


def _settings(config: Mapping[str, Any], paths: list[str]) -> LoRA:
    """What the folder says, in our words; ranks and alphas by pattern are read off the tensors and folded into them."""
    return LoRA(
        targets=tuple(sorted(paths)),
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout", 0.0)),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        bias=config.get("bias", "none"),
    )


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's factor for a module: patterns are matched against the end of its name."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _attach(
    model: CausalLM,
    path: str,
    module: Any,
    name: str,
    layers: Mapping[int, Mapping[str, np.ndarray]],
    table: Mapping[str, Rule],
    config: Mapping[str, Any],
    lora: LoRA,
    folder: Path,
) -> int:
    """Puts the adapter of one of our matrices in place; its rank. Layers that the folder leaves out get zeros, smaller
    ranks are filled up with zeros, and factors that differ between layers are folded into b."""
    rule = table[matrix_name(path)]
    head = path == "lm_head" and model.lm_head is None
    if path == "embedding" or head:
        shape, axes = model.embedding.get_value().shape, ("vocab", "embed")
        shape, axes = (shape[::-1], axes[::-1]) if head else (shape, axes)
    else:
        target = model.lm_head if path == "lm_head" else module
        assert target is not None
        shape, axes = target.full_kernel().shape[-2:], target.axes
    in_dim, out_dim = shape
    rank = max(half["lora_A"].shape[0] for half in layers.values())
    scale = lora.alpha / rank**0.5 if lora.rslora else lora.alpha / rank
    count = len(_numbers(name, model))
    a, b = np.zeros((count, 1, in_dim, rank), np.float32), np.zeros((count, 1, rank, out_dim), np.float32)
    magnitude = np.zeros((count, 1, out_dim), np.float32) if lora.dora else None
    for layer in range(count):
        half = layers.get(layer)
        if half is None:
            if magnitude is not None:
                raise ValueError(f"{folder} has DoRA lengths for some layers of {name} only, which is not supported")
            continue
        lower, higher = half["lora_A"], half["lora_B"]
        part = (0, 1) if rule.part is None else rule.part
        wide = part[1] * out_dim
        if lower.shape != (len(lower), in_dim) or higher.shape != (wide, len(lower)):
            raise ValueError(
                f"{folder}: {_spelled(name, layer)} has lora_A {lower.shape} and lora_B {higher.shape}, but its matrix "
                f"here is {in_dim} x {wide}: it belongs to another base"
            )
        mine = slice(part[0] * out_dim, (part[0] + 1) * out_dim)
        own = _scale(config, _spelled(name, layer), len(lower))
        a[layer, 0, :, : len(lower)] = lower.T
        b[layer, 0, : len(lower)] = higher[mine].T.astype(np.float32) * (own / scale)
        if magnitude is not None:
            magnitude[layer, 0] = half["lora_magnitude_vector"].reshape(-1)[mine]

    def placed(values: np.ndarray) -> Array:
        return jnp.asarray(values if rule.stacked else values[0])

    adapter = Adapter(
        placed(a),
        placed(b),
        None if magnitude is None else placed(magnitude),
        axes=axes,
        scales=(scale,),
        dropout=lora.dropout,
        dtype=model.config.dtype,
        path=path,
    )
    if path in ("embedding", "lm_head"):
        setattr(model, f"{path}_lora", nnx.data(adapter))
    else:
        module.lora = nnx.data(adapter)
    return rank


def _load_whole(
    model: CausalLM, rest: Mapping[str, np.ndarray], table: Mapping[str, Rule], folder: Path
) -> tuple[CausalLM, tuple[str, ...]]:
    """The model with the parameters that the folder has whole, and which they are. PEFT stores a copy of the base's
    tables beside adapters on them (`base_layer.weight`): those must equal ours."""
    graph, state = nnx.split(model)
    leaves = dict(nnx.to_flat_state(state))
    paths = parameter_paths(state)
    given: dict[str, dict[int, np.ndarray]] = {}
    names = {
        _spelled(rule.name, layer): (path, layer)
        for path, rule in table.items()
        for layer in _numbers(rule.name, model)
        if rule.part is None
    }
    head: np.ndarray | None = None  # a tied table where it makes logits
    for key, value in rest.items():
        copy = ".base_layer.weight" in key
        name = key.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
        path, layer = names.get(name, ("", 0))
        tied = path == "lm_head.kernel" and model.lm_head is None
        if tied:
            path = "embedding"
        if path not in paths:
            raise ValueError(f"{folder} holds {key}, which this base has no place for: it belongs to another")
        ours = value if tied else table[path].ours(value, model.config)
        old = leaves[paths[path]].get_value()
        old = old[layer] if table[path].stacked else old
        if ours.shape != old.shape:
            raise ValueError(f"{folder}: {key} is {value.shape}, which does not fit this base: it belongs to another")
        if tied and not copy:
            head = ours
            continue
        if copy:
            if not np.allclose(ours, np.asarray(old, np.float32), rtol=1e-2, atol=1e-3):  # theirs may be in bfloat16
                raise ValueError(f"{folder} carries a {name} that is not this base's: it belongs to another, or {name} "
                                 "was resized or trained beside its adapter")  # fmt: skip
            continue
        given.setdefault(path, {})[layer] = ours
    if model.lm_head is None:
        old = np.asarray(leaves[paths["embedding"]].get_value(), np.float32)
        ends = given.get("embedding", {}).get(0, old), old if head is None else head
        if not np.allclose(*ends, rtol=1e-2, atol=1e-3):
            raise ValueError(
                f"{folder} trains a tied token table in one of its two places alone: merge it with PEFT, or train it "
                "with ensure_weight_tying"
            )
    for path, layers in given.items():
        leaf = leaves[paths[path]]
        new = np.array(leaf.get_value(), np.float32)
        for layer, value in layers.items():
            if table[path].stacked:
                new[layer] = value
            else:
                new[...] = value
        leaves[paths[path]] = leaf.replace(jnp.asarray(new, leaf.get_value().dtype))
    if not given:
        return model, ()
    return nnx.merge(graph, nnx.from_flat_state(leaves)), tuple(sorted(p for p in given if not p.endswith(".bias")))

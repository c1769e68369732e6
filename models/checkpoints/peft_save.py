"""An adapter out as a PEFT folder; see models.checkpoints.peft for the keys."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from models.adapter import Adapter
from models.adapters import adapters_of
from models.checkpoints.fingerprint import checksums
from models.checkpoints.names import Rule
from models.checkpoints.peft import family_table, matrix_name, quantization_of
from models.checkpoints.peft_folder import CONFIG_NAME, ORIGIN_NAME, PREFIX, WEIGHTS_NAME
from models.checkpoints.weights import parameter_paths
from models.lora import CHANGES_BASE, LoRA, adaptable
from models.trainable import is_adapter, trainable_paths
from models.transformer import CausalLM


def save_peft(model: CausalLM, lora: LoRA, folder: Path, *, base: str = "", index: int = 0) -> None:
    """Write one adapter of a stacked model, and what `lora` trains besides, as PEFT reads it.

    lora: the settings that the adapters were made with. base: for base_model_name_or_path. index: which adapter.
    Errors: ValueError where there is no such adapter, or it acts on another base than the one that PEFT would load.
    """
    if lora.init in CHANGES_BASE:
        raise ValueError(
            f"an adapter with init={lora.init!r} acts on a base that it changed, which PEFT does not have: put it on "
            "the original first (models.original.on_original; train.export --format peft does)"
        )
    table, adapters = family_table(model), adapters_of(model)
    if not adapters:
        raise ValueError("this model has no adapter: nothing to write for PEFT; export it with --format hf")
    if not 0 <= index < len(lora.names):
        raise ValueError(f"there is no adapter {index} to write: they are 0 to {len(lora.names) - 1}")
    modules: dict[str, dict[str, Adapter]] = {}
    for path, adapter in adapters.items():
        rule = table[matrix_name(path)]
        modules.setdefault(rule.name.removesuffix(".weight"), {})[path] = adapter
    tensors: dict[str, np.ndarray] = {}
    ranks, alphas = {}, {}
    for module, parts in modules.items():
        rank, scale = _write_module(tensors, model, module, parts, table, index)
        ranks[module], alphas[module] = rank, scale * (rank**0.5 if lora.rslora else rank)
    trained = trainable_paths(parameter_paths(nnx.state(model, nnx.Param)), lora)
    whole = _write_whole(tensors, model, lora, table)
    names = {module: module.split("{i}.")[-1] for module in modules}
    name, _, revision = base.removeprefix("hf:").partition("@") if base.startswith("hf:") else (base, "", "")
    rank, alpha = _most(ranks.values()), _most(alphas.values())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision or None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "bias": lora.bias,
        "target_modules": sorted(names.values()),
        "fan_in_fan_out": not next(
            iter(table[matrix_name(path)] for path in adapters if path != "embedding"), _OUT_IN
        ).transpose,
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "rank_pattern": {re.escape(names[m]): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(names[m]): a for m, a in alphas.items() if a != alpha},
        "modules_to_save": whole or None,
        "ensure_weight_tying": model.lm_head is None and "embedding" in trained,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    from safetensors.numpy import save_file

    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    origin = {
        "quantization": quantization_of(model),
        "adapter": lora.names[index],
        "base": base,
        "base_checksums": {path: value for path, value in checksums(model).items() if path not in trained},
    }
    (folder / ORIGIN_NAME).write_text(json.dumps(origin, indent=2) + "\n")
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")  # last: a folder with it is whole


_OUT_IN = Rule("", transpose=True)


def _most(values: Any) -> Any:
    """The value that most modules have, so that patterns stay short."""
    values = list(values)
    return max(values, key=values.count)


def _write_module(
    tensors: dict[str, np.ndarray],
    model: CausalLM,
    module: str,
    parts: Mapping[str, Adapter],
    table: Mapping[str, Rule],
    index: int,
) -> tuple[int, float]:
    """Tensors of one PEFT module; (rank, scale). Where it is several of our matrices side by side (GPT-2's c_attn), the
    ranks add up: B has each part's columns in its own rows and zeros elsewhere."""
    rule = table[matrix_name(next(iter(parts)))]
    count = 1 if rule.part is None else rule.part[1]
    siblings = {r.part: p for p, r in table.items() if r.name == rule.name and rule.part is not None}
    scale = next(iter(parts.values())).scales[index]
    halves = {
        path: tuple(_layers(half, index, rule.stacked) for half in (adapter.a, adapter.b))
        for path, adapter in parts.items()
    }
    for layer in range(model.config.num_layers if rule.stacked else 1):
        lowers, raises, lengths = [], [], []
        for path, (a, b) in halves.items():
            place = 0 if rule.part is None else table[matrix_name(path)].part[0]  # type: ignore[index]
            wide = np.zeros((count, b.shape[-1], b.shape[-2]), np.float32)
            wide[place] = (b[layer] * (parts[path].scales[index] / scale)).T
            lowers.append(a[layer].T)
            raises.append(wide.reshape(-1, b.shape[-2]))
        name = PREFIX + module.replace("{i}", str(layer))
        embedding = "embedding" in parts
        ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        tensors[f"{name}.{ends[0]}"] = np.ascontiguousarray(np.concatenate(lowers, axis=0))
        tensors[f"{name}.{ends[1]}"] = np.ascontiguousarray(np.concatenate(raises, axis=1))
        if next(iter(parts.values())).magnitude is not None:
            for place in range(count):
                path = next(iter(parts)) if rule.part is None else siblings[(place, count)].removesuffix(".kernel")
                if path in parts:
                    lengths.append(_layers(parts[path].magnitude, index, rule.stacked)[layer])
                else:  # a part without an adapter keeps the length that it has
                    kernel = np.asarray(adaptable(model)[path].full_kernel()[layer], np.float32)
                    lengths.append(np.linalg.norm(kernel, axis=0))
            tensors[f"{name}.lora_magnitude_vector"] = np.concatenate(lengths)
    return sum(half[0].shape[-1] for half in halves.values()), scale


def _layers(part: Any, index: int, stacked: bool) -> np.ndarray:
    """One adapter's half (or magnitude) of every layer, float32, layers in front whether stacked or not."""
    value = np.asarray(part.get_value(), np.float32)
    return value[:, index] if stacked else value[None, index]


def _write_whole(tensors: dict[str, np.ndarray], model: CausalLM, lora: LoRA, table: Mapping[str, Rule]) -> list[str]:
    """Parameters that are trained whole; the names for modules_to_save."""
    state = nnx.state(model, nnx.Param)
    leaves = dict(nnx.to_flat_state(state))
    paths = parameter_paths(state)
    modules = set()
    trained = sorted(path for path in trainable_paths(paths, lora) if not is_adapter(path))
    check_whole(trained, model, lora)
    for path in trained:
        rule = table[path]
        if rule.part is not None:
            raise ValueError(f"{path} is trained whole, but shares a tensor with others in this family: merge instead")
        value = np.asarray(leaves[paths[path]].get_value(), np.float32)
        module, _, kind = rule.name.rpartition(".")
        by_bias = kind == "bias" and lora.bias != "none"
        adapted = path.rpartition(".")[0] in adapters_of(model)
        if not by_bias:
            modules.add(module.split("{i}.")[-1])
        for layer in range(model.config.num_layers if rule.stacked else 1):
            name = PREFIX + module.replace("{i}", str(layer)) + (".base_layer" if by_bias and adapted else "")
            ours = value[layer] if rule.stacked else value
            tensors[f"{name}.{kind}"] = np.ascontiguousarray(rule.theirs([ours], model.config))
        if path == "embedding" and model.lm_head is None:  # PEFT reads the table once for each of its two places
            tensors[f"{PREFIX}{table['lm_head.kernel'].name}"] = tensors[f"{name}.{kind}"].copy()
    return sorted(modules)


def check_whole(trained: Collection[str], model: CausalLM, lora: LoRA) -> None:
    """ValueError where PEFT could not read what is trained whole: it takes modules with all their parameters, or with
    an adapter; never both, nor a bias that `lora.bias` does not name."""
    adapted, paths = adapters_of(model), parameter_paths(nnx.state(model, nnx.Param))
    for path in trained:
        if path.endswith(".bias") and lora.bias != "none":
            continue
        module = path.rpartition(".")[0] or path
        left = [p for p in paths if p.rpartition(".")[0] == module and p not in trained]
        if left or module in adapted:
            other = f"{left[0]} is not" if left else "has an adapter too"
            raise ValueError(f"{path} is trained whole and {other}, which PEFT has no words for: merge (--format hf)")

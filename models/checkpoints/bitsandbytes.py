"""NF4 weights in and out of Hugging Face folders as bitsandbytes stores them, and transformers loads them.

    NAME.weight                                   uint8 [O * I / 2, 1], the codes of a row-major [O, I] matrix, in pairs
    NAME.weight.absmax                            uint8 [O * I / block] (double quantisation) or float32: its scales
    NAME.weight.nested_absmax, nested_quant_map   float32: the scales of the scales, and the map of their codes
    NAME.weight.quant_map                         float32 [16], the values of the codes
    NAME.weight.quant_state.bitsandbytes__nf4     JSON: shape, blocksize, nested_blocksize, nested_offset, dtype

Their blocks run along a row of [O, I], ours down a column of [I, O]: the same numbers, so that nothing is quantised
again and the values are theirs to the last bit. Shapes: I and O the sides of a projection, L layers.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from models.checkpoints.families import write_config
from models.checkpoints.names import HF_TABLES, Rule, select
from models.checkpoints.save import special_ids
from models.checkpoints.tensors import MAX_SHARD_BYTES, Entry, SafetensorsFolder, write_safetensors
from models.checkpoints.tokenizer import TextTokenizer
from models.checkpoints.weights import parameter_paths, read_parameter
from models.config import ModelConfig
from models.quantize import NF4, NF4_VALUES, SCALE_GROUP, QuantizedLinear, dynamic_map, quantize_model
from models.sharding import param_shardings
from models.transformer import CausalLM

STATE = ".quant_state.bitsandbytes__nf4"


def stored_quantization(hf_config: Mapping[str, Any], origin: str) -> NF4 | None:
    """What a Hugging Face config says of its weights; None where they are float.

    Errors: ValueError on a quantisation that is not bitsandbytes' NF4.
    """
    found = hf_config.get("quantization_config")
    if not found:
        return None
    kind = (found.get("quant_method"), found.get("bnb_4bit_quant_type"), found.get("load_in_4bit"))
    if kind != ("bitsandbytes", "nf4", True) or found.get("bnb_4bit_quant_storage", "uint8") != "uint8":
        raise ValueError(
            f"{origin} is quantised by {found.get('quant_method')!r} ({found.get('bnb_4bit_quant_type')!r}): expected "
            "bitsandbytes' nf4 stored as uint8; load the original weights and set quantize=NF4()"
        )
    return NF4(block=64, double_quant=bool(found.get("bnb_4bit_use_double_quant")))


def load_bitsandbytes(
    folder: Path,
    config: ModelConfig,
    form: NF4,
    table: Mapping[str, Rule],
    *,
    mesh: Mesh | None,
    param_dtype: str | None,
) -> CausalLM:
    """The model with its projections as they are stored; what is float there is float here.

    Errors: ValueError where a tensor is missing, or is not what `form` says.
    """
    source = SafetensorsFolder(folder)
    abstract = nnx.eval_shape(lambda: quantize_model(CausalLM(config, rngs=nnx.Rngs(0)), form))
    graph, state = nnx.split(abstract)
    leaves = dict(nnx.to_flat_state(state))
    paths = parameter_paths(state)
    kernels = {path.split(".parts.")[0] + ".kernel" for path in paths if ".parts." in path}
    rules = select(table, kernels | {path for path in paths if ".parts." not in path})
    placements = None if mesh is None else dict(nnx.to_flat_state(param_shardings(state, mesh)))
    loaded: dict[Any, Any] = {}

    def sharding(path: str) -> Any:
        return SingleDeviceSharding(jax.devices()[0]) if placements is None else placements[paths[path]].get_value()

    for path, rule in rules.items():
        names = [rule.name.replace("{i}", str(i)) for i in range(config.num_layers)] if rule.stacked else [rule.name]
        if missing := [name for name in names if name not in source.shapes()]:
            raise ValueError(
                f"{folder} lacks {missing[0]}: it is not whole, or not of the family that its config names"
            )
        if path in kernels:
            if rule.part is not None or rule.interleaved is not None or not rule.transpose:
                raise ValueError(f"{folder}: {names[0]} is laid out in a way that quantised blocks cannot follow")
            stacked = [read_parts(source, name, form, str(folder)) for name in names]
            for part in stacked[0]:
                leaf_path = f"{path.removesuffix('.kernel')}.parts.{part}"
                values = np.stack([one[part] for one in stacked])
                check_part(values, leaves[paths[leaf_path]].get_value(), names[0], str(folder))
                loaded[paths[leaf_path]] = leaves[paths[leaf_path]].replace(jax.device_put(values, sharding(leaf_path)))
        else:
            leaf = leaves[paths[path]]
            dtype = np.dtype(param_dtype or config.param_dtype)
            shape = leaf.get_value().shape
            loaded[paths[path]] = leaf.replace(
                read_parameter(source, rule, names, config, shape, dtype, sharding(path))
            )
    return nnx.merge(graph, nnx.from_flat_state(loaded))


def check_part(values: np.ndarray, expected: Any, name: str, origin: str) -> None:
    """ValueError where a part has not the shape and dtype that the config asks for."""
    if values.shape != expected.shape or values.dtype != expected.dtype:
        raise ValueError(
            f"{origin}: the parts of {name} are {values.dtype} {values.shape}, expected {expected.dtype} "
            f"{expected.shape}: it does not fit its config"
        )


def read_parts(source: SafetensorsFolder, name: str, form: NF4, origin: str) -> dict[str, np.ndarray]:
    """The parts of one matrix [I, O], as `models.quantize.quantize` names them, out of bitsandbytes' tensors."""
    known = source.shapes()
    if name + STATE not in known:
        raise ValueError(f"{origin}: {name} is not quantised, the config says that it is")
    state = json.loads(bytes(np.asarray(source.view(name + STATE))))
    out_dim, in_dim = state["shape"]
    nested = "nested_blocksize" in state
    if state["blocksize"] != form.block or nested != form.double_quant or in_dim % form.block:
        raise ValueError(
            f"{origin}: {name} has blocks of {state['blocksize']} in rows of {in_dim}, double quantisation {nested}; "
            f"expected blocks of {form.block} that divide the rows, double quantisation {form.double_quant}"
        )
    if not np.allclose(source.view(name + ".quant_map"), NF4_VALUES, atol=1e-6):
        raise ValueError(f"{origin}: the values of {name}.quant_map are not NF4's")
    packed = np.asarray(source.view(name)).reshape(out_dim, in_dim // 2).T
    scales = np.asarray(source.view(name + ".absmax")).reshape(out_dim, in_dim // form.block).T
    if not nested:
        return {"packed": packed, "scales": scales.astype(np.float32)}
    if state["nested_blocksize"] != SCALE_GROUP or not np.allclose(
        source.view(name + ".nested_quant_map"), dynamic_map(), atol=1e-6
    ):
        raise ValueError(f"{origin}: the scales of {name} are quantised by another map, or in groups other than 256")
    return {
        "packed": packed,
        "scale_codes": scales,
        "group_scales": np.asarray(source.view(name + ".nested_absmax"), np.float32),
        "mean": np.asarray(state["nested_offset"], np.float32),
    }


# ------------------------------------------------------------------------------------------------------------ writing


def save_bitsandbytes(
    model: CausalLM, folder: Path, *, tokenizer: TextTokenizer | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[Path]:
    """Write a model whose projections are NF4 as transformers reads it; returns the weight files.

    Errors: ValueError where nothing of the model is NF4, or it has adapters: merge or save those apart.
    """
    forms = {module.config for _, module in nnx.iter_modules(model) if isinstance(module, QuantizedLinear)}
    if len(forms) != 1 or not isinstance(form := forms.pop(), NF4) or form.block != 64:
        raise ValueError("bitsandbytes' folders hold NF4 in blocks of 64: quantise the model with NF4() first")
    config = write_config(model.config) | special_ids(tokenizer)
    config["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": form.double_quant,
        "bnb_4bit_compute_dtype": model.config.dtype,
        "bnb_4bit_quant_storage": "uint8",
    }
    folder.mkdir(parents=True, exist_ok=True)
    entries = quantised_entries(model, HF_TABLES[config["model_type"]], form)
    paths = write_safetensors(folder, entries, max_shard_bytes)
    if tokenizer is not None:
        tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")  # last: a folder with it is whole
    return paths


def quantised_entries(model: CausalLM, table: Mapping[str, Rule], form: NF4) -> Iterator[Entry]:
    """Every tensor of such a folder: name, shape, dtype and how to get its values, layer after layer."""
    state = nnx.state(model)
    leaves = dict(nnx.to_flat_state(state))
    paths = parameter_paths(state)
    owners = {path.split(".parts.")[0] for path in paths if ".parts." in path}
    plain = {path for path in paths if ".parts." not in path}
    for path, rule in select(table, plain | {f"{owner}.kernel" for owner in owners}).items():
        for layer in range(model.config.num_layers) if rule.stacked else (None,):
            name = rule.name if layer is None else rule.name.replace("{i}", str(layer))
            if path in plain:
                leaf = leaves[paths[path]].get_value()
                ours = leaf if layer is None else leaf[layer]
                values = rule.theirs([np.asarray(ours)], model.config)
                yield name, values.shape, values.dtype, partial(np.asarray, values)
                continue
            prefix = f"{path.removesuffix('.kernel')}.parts."
            parts = {p.removeprefix(prefix): leaves[paths[p]].get_value() for p in paths if p.startswith(prefix)}
            yield from matrix_entries(
                name, {k: np.asarray(v[layer]) for k, v in parts.items()}, form, model.config.dtype
            )


def matrix_entries(name: str, parts: Mapping[str, np.ndarray], form: NF4, dtype: str) -> Iterator[Entry]:
    """The tensors of one matrix."""
    pairs, out_dim = parts["packed"].shape
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": form.block,
        "dtype": dtype,
        "shape": [out_dim, 2 * pairs],
    }
    tensors = {name: parts["packed"].T.reshape(-1, 1), f"{name}.quant_map": np.asarray(NF4_VALUES, np.float32)}
    if form.double_quant:
        state |= {"nested_blocksize": SCALE_GROUP, "nested_dtype": "float32", "nested_offset": float(parts["mean"])}
        tensors |= {
            f"{name}.absmax": parts["scale_codes"].T.reshape(-1),
            f"{name}.nested_absmax": parts["group_scales"],
            f"{name}.nested_quant_map": dynamic_map(),
        }
    else:
        tensors[f"{name}.absmax"] = parts["scales"].T.reshape(-1)
    tensors[name + STATE] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    for key, values in tensors.items():
        yield key, values.shape, values.dtype, partial(np.asarray, values)

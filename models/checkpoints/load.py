"""One call from a location to a model on the mesh: Hugging Face folder, GGUF file, `hf:org/name`, `package:name/file`.

    loaded = load_checkpoint("hf:HuggingFaceTB/SmolLM2-135M-Instruct")
    loaded.model(...), loaded.tokenizer.encode_prompt("The capital of France is")

No torch, no pickles, no remote code. A Sluice run is loaded by models.checkpoints.run, through the same call.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from models.adapters import chosen
from models.checkpoints.adapters import with_adapters
from models.checkpoints.bitsandbytes import load_bitsandbytes, stored_quantization
from models.checkpoints.families import read_config
from models.checkpoints.gguf_config import gguf_config, gguf_table
from models.checkpoints.gguf_file import GgufFile
from models.checkpoints.gguf_tokenizer import gguf_tokenizer
from models.checkpoints.llama import repeating
from models.checkpoints.location import Location, read_hf_config, resolve
from models.checkpoints.names import HF_TABLES
from models.checkpoints.run import load_run, read_run_config, read_run_tuning, run_tokenizer
from models.checkpoints.tensors import SafetensorsFolder
from models.checkpoints.tokenizer import ChatTemplate, TextTokenizer, load_tokenizer_folder
from models.checkpoints.weights import parameter_paths, read_weights
from models.config import ModelConfig
from models.quantize import NF4
from models.transformer import CausalLM, abstract_model


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """A model, and what came with it. adapters: names of those that it has, in the order of their numbers."""

    model: CausalLM
    tokenizer: TextTokenizer | None
    location: Location
    adapters: tuple[str, ...] = ()

    def adapter(self, name: str | None) -> int:
        """The number of an adapter, -1 for "base"; None: the first one. ValueError where none has the name."""
        return chosen(name, self.adapters)

    @property
    def config(self) -> ModelConfig:
        """The model's config, with the dtypes that were chosen."""
        return self.model.config


def load_checkpoint(
    location: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    param_dtype: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> LoadedCheckpoint:
    """The model and tokenizer at a location, the weights placed on `mesh` by the sharding rules (None: one device).

    dtype: compute dtype; None: bfloat16, but float32 on a CPU, where bfloat16 is emulated and slower.
    param_dtype: dtype of the weights; None keeps what the checkpoint stores. adapters: names and PEFT folders of
    adapters over it, any of which a row of a batch may use (models/checkpoints/adapters.py).
    Errors: ValueError, one line, where the checkpoint is not whole, not known, or not safe.
    """
    where = resolve(location)
    config = checkpoint_config(where)
    platform = (jax.devices()[0] if mesh is None else mesh.devices.flat[0]).platform
    config = dataclasses.replace(config, dtype=dtype or ("float32" if platform == "cpu" else "bfloat16"))
    tokenizer = load_tokenizer(where)
    check_vocabulary(tokenizer, config, str(where.path))
    model = load_model(where, config, mesh, param_dtype)
    if adapters:
        model, names = with_adapters(model, adapters), tuple(adapters)
    else:
        lora = read_run_tuning(where.path).lora if where.kind == "run" else None
        names = () if lora is None else lora.names
    return LoadedCheckpoint(model=model, tokenizer=tokenizer, location=where, adapters=names)


def check_vocabulary(tokenizer: TextTokenizer | None, config: ModelConfig, origin: str) -> None:
    """ValueError where the tokenizer is another model's. Tokens added to it later may lie past the model's table."""
    size = 0 if tokenizer is None else tokenizer.backend.get_vocab_size(with_added_tokens=False)
    if size > config.vocab_size:
        raise ValueError(
            f"{origin} has a tokenizer of {size} tokens and a model of {config.vocab_size}: it is another model's "
            "tokenizer; copy the one that belongs to the weights"
        )


def checkpoint_config(where: Location) -> ModelConfig:
    """The model config that a checkpoint describes; reads no weights."""
    if where.kind == "gguf":
        return gguf_config(GgufFile(where.path))
    if where.kind == "run":
        return read_run_config(where.path)
    return read_config(read_hf_config(where.path), str(where.path))


def load_tokenizer(where: Location) -> TextTokenizer | None:
    """The tokenizer that belongs to a checkpoint; None where it has none."""
    if where.kind == "gguf":
        file = GgufFile(where.path)
        return gguf_tokenizer(file) if "tokenizer.ggml.tokens" in file.metadata else None
    if where.kind == "run":
        return run_tokenizer(where.path)
    return load_tokenizer_folder(where.path) if (where.path / "tokenizer.json").exists() else None


def load_model(where: Location, config: ModelConfig, mesh: Mesh | None, param_dtype: str | None) -> CausalLM:
    """The model at a resolved location, as `load_checkpoint` loads it."""
    if where.kind == "run":
        return load_run(where.path, config, mesh=mesh, param_dtype=param_dtype)
    if form := quantization_of(where):
        table = HF_TABLES[read_hf_config(where.path)["model_type"]]
        return load_bitsandbytes(where.path, config, form, table, mesh=mesh, param_dtype=param_dtype)
    graph, state = nnx.split(abstract_model(config))
    paths = parameter_paths(state)
    read = read_parameters(where, config, mesh, param_dtype)
    return with_stored_dtype(nnx.merge(graph, nnx.from_flat_state({paths[path]: leaf for path, leaf in read})))


def quantization_of(where: Location) -> NF4 | None:
    """How a checkpoint's projections are stored; None: float, or dequantised while they are read (GGUF)."""
    return stored_quantization(read_hf_config(where.path), str(where.path)) if where.kind == "hf" else None


def read_parameters(
    where: Location, config: ModelConfig, mesh: Mesh | None, param_dtype: str | None
) -> Iterator[tuple[str, nnx.Variable]]:
    """(dotted path, variable) of every parameter of a checkpoint, one after the other: none is kept here."""
    options: dict[str, Any] = {"origin": str(where.path), "mesh": mesh, "param_dtype": param_dtype}
    if where.kind == "run":
        state = nnx.state(load_run(where.path, config, mesh=mesh, param_dtype=param_dtype))
        yield from ((".".join(map(str, path)), leaf) for path, leaf in nnx.to_flat_state(state))
    elif where.kind == "gguf":
        file = GgufFile(where.path)
        yield from read_weights(file, gguf_table(file.architecture), config, **options)
    else:
        table = HF_TABLES[read_hf_config(where.path)["model_type"]]
        yield from read_weights(SafetensorsFolder(where.path), table, config, **options)


def with_stored_dtype(model: CausalLM) -> CausalLM:
    """The model with `config.param_dtype` naming what its weights are: bfloat16 if all are, else float32."""
    dtypes = {np.dtype(leaf.dtype).name for leaf in jax.tree.leaves(nnx.state(model))}
    stored = "bfloat16" if dtypes == {"bfloat16"} else "float32"
    if model.config.param_dtype != stored:
        model.config = dataclasses.replace(model.config, param_dtype=stored)
    return model


def load_params(location: str | Path, config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """Weights of a checkpoint as nested dicts of float32 arrays on `mesh`, to start the training of `config` from.

    Errors: ValueError naming the parts in which the checkpoint is another model than `config`; dtypes, execution and
    the context length may differ.
    """
    where = resolve(location)
    model = load_model(where, matching_config(where, config), mesh, "float32")
    return nnx.to_pure_dict(nnx.state(model))


def matching_config(where: Location, config: ModelConfig) -> ModelConfig:
    """The config of a checkpoint; ValueError naming the parts in which it is another model than `config`.

    A run with adapters is refused too: which of them its weights have in them must be said, by merging.
    """
    if where.kind == "run" and read_run_tuning(where.path).lora is not None:
        raise ValueError(
            f"init_from {where.path} is a run with adapters, on weights that do not hold what they learned: merge them "
            f"(python -m train.export --checkpoint {where.path} --format hf --out DIR) and start from DIR"
        )
    found = checkpoint_config(where)
    ours, theirs = _comparable(config), _comparable(found)
    other = [f"{k}={theirs[k]!r} there, {ours[k]!r} here" for k in ours if ours[k] != theirs[k]]
    if other:
        raise ValueError(f"init_from {where.path} is another model: {'; '.join(other)}; set the model section to match")
    return found


def _comparable(config: ModelConfig) -> dict[str, Any]:
    """What two models must share to share weights, by name."""
    embedding = config.embedding
    if not embedding.learned_positions:
        embedding = dataclasses.replace(embedding, max_positions=None)
    plain = dataclasses.replace(config, pattern=repeating(config.blocks), embedding=embedding)
    attention = dataclasses.replace(config.attention, query_scale=config.query_scale)
    values = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)} | {"attention": attention}
    return {name: value for name, value in values.items() if name not in ("dtype", "param_dtype", "execution")}


@dataclass(frozen=True, kw_only=True)
class CheckpointTokenizer:
    """A dataset's tokenizer, taken from a checkpoint: goes where `data.tokenizer.TokenizerConfig` trains one."""

    location: str

    def write(self, folder: Path) -> None:
        """Write tokenizer.json and what names its special tokens; ValueError where the checkpoint has no tokenizer."""
        self._load().save(folder)

    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template; ValueError where it has none."""
        return self._load().template()

    def _load(self) -> TextTokenizer:
        tokenizer = load_tokenizer(resolve(self.location))
        if tokenizer is None:
            raise ValueError(f"{self.location} has no tokenizer to take for the dataset")
        return tokenizer

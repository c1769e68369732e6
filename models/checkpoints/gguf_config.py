"""The model config of a GGUF file, and what a GGUF file must say of a model. A model that it cannot say is refused."""

from collections.abc import Mapping
from dataclasses import replace

from flax import nnx

from models.checkpoints.families import mathematics
from models.checkpoints.gguf_families import ARCHITECTURES, Description, Written
from models.checkpoints.names import Rule
from models.checkpoints.weights import parameter_paths
from models.config import ModelConfig
from models.transformer import abstract_model


def gguf_table(architecture: str) -> Mapping[str, Rule]:
    """The names of an architecture's tensors; ValueError where it is not known."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"GGUF architecture {architecture!r} is not known; Sluice reads {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture].table


def gguf_config(file: Description) -> ModelConfig:
    """The `ModelConfig` that a GGUF file's metadata describes."""
    gguf_table(file.architecture)
    return ARCHITECTURES[file.architecture].read(file)


def describe_gguf(config: ModelConfig) -> Written:
    """The architecture and metadata of a model that GGUF can hold; ValueError where it cannot."""
    paths = parameter_paths(nnx.state(abstract_model(config)))
    wanted = _comparable(config)
    for name, architecture in ARCHITECTURES.items():
        if not paths.keys() <= architecture.table.keys():
            continue
        names = frozenset(architecture.table[path].name.replace("{i}", "0") for path in paths)
        try:
            written = architecture.write(config)
            found = Written(architecture=name, values=written.values, tensors=written.tensors, names=names)
            if _comparable(architecture.read(found)) == wanted:
                return found
        except (AttributeError, KeyError, ValueError):
            continue  # this architecture has no word for one of the parts
    raise ValueError(
        f"GGUF has no architecture ({', '.join(ARCHITECTURES)}) for this model: norm={config.norm}, "
        f"attention={config.attention}, pattern={config.pattern[:2]}; save a Hugging Face folder"
    )


def _comparable(config: ModelConfig) -> ModelConfig:
    """The model's mathematics; a context length is a limit and not mathematics, unless it is the size of a table."""
    if config.embedding.learned_positions:
        return mathematics(config)
    return mathematics(replace(config, embedding=replace(config.embedding, max_positions=None)))

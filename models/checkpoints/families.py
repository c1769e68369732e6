"""Model families: how a Hugging Face config reads as a `ModelConfig`, and back. A family adds nothing to the layers.

`FAMILIES` maps the `model_type` of a config.json to a `Family`. Reading refuses what it cannot express with a sentence:
a setting that is ignored gives finite, readable, wrong text.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.checkpoints import gemma, gpt2, llama
from models.checkpoints.llama import Json, repeating
from models.config import Execution, ModelConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`.

    read: config.json -> ModelConfig. write: ModelConfig -> config.json, or anything that reads back differently where
    the family cannot express the config. refused: settings with the only value that Sluice reads.
    """

    architecture: str
    read: Callable[[Json], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    refused: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_config(config: Json, source: str) -> ModelConfig:
    """The `ModelConfig` of a config.json; ValueError names the family or the setting that is not supported.

    source: where the config came from, for messages. Compute dtype is the default of `ModelConfig`.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{source} is of the family {kind!r}; Sluice reads {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    for key, only in family.refused.items():
        if config.get(key, only) not in (only, None):
            raise ValueError(f"{source} sets {key}={config[key]!r}; only {only!r} is supported for {kind}")
    try:
        return family.read(config)
    except KeyError as error:
        raise ValueError(f"{source} lacks {error.args[0]!r}, which a {kind} config.json needs") from None


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json that gives the same model in transformers; ValueError where no family expresses this one."""
    wanted = mathematics(config)
    for kind, family in FAMILIES.items():
        try:
            written = {"model_type": kind, "architectures": [family.architecture], **family.write(config)}
            if mathematics(family.read(written)) == wanted:
                return written
        except (AttributeError, KeyError, ValueError):
            continue  # this family has no word for one of the parts
    raise ValueError(
        f"no Hugging Face family ({', '.join(FAMILIES)}) expresses this model: {_unusual(config)}; "
        "keep the run's own checkpoint"
    )


def mathematics(config: ModelConfig) -> ModelConfig:
    """The config without what does not change the function: dtypes, execution, an equal spelling of the same value."""
    attention = dataclasses.replace(config.attention, query_scale=config.query_scale)
    pattern = repeating(config.blocks)
    plain = {"dtype": "float32", "param_dtype": "float32", "execution": Execution()}
    return dataclasses.replace(config, attention=attention, pattern=pattern, **plain)  # type: ignore[arg-type]


def _unusual(config: ModelConfig) -> str:
    return f"norm={config.norm}, attention={config.attention}, mlp={config.mlp}, embedding={config.embedding}"


FAMILIES: dict[str, Family] = {
    "llama": Family(architecture="LlamaForCausalLM", read=llama.read_llama, write=llama.write_llama),
    "mistral": Family(architecture="MistralForCausalLM", read=llama.read_mistral, write=llama.write_mistral),
    "qwen2": Family(architecture="Qwen2ForCausalLM", read=llama.read_qwen2, write=llama.write_qwen),
    "qwen3": Family(architecture="Qwen3ForCausalLM", read=llama.read_qwen3, write=llama.write_qwen),
    "smollm3": Family(architecture="SmolLM3ForCausalLM", read=llama.read_smollm3, write=llama.write_smollm3),
    "gemma": Family(
        architecture="GemmaForCausalLM", read=gemma.read_gemma, write=gemma.write_gemma, refused=gemma.REFUSED
    ),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM", read=gemma.read_gemma2, write=gemma.write_gemma2, refused=gemma.REFUSED
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM", read=gemma.read_gemma3, write=gemma.write_gemma3, refused=gemma.REFUSED
    ),
    "gpt2": Family(architecture="GPT2LMHeadModel", read=gpt2.read_gpt2, write=gpt2.write_gpt2, refused=gpt2.REFUSED),
}

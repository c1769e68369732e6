"""Hugging Face folders of models whose layers are lists of modules: encoders and encoder-decoders.

The decoder-only transformer stacks its layers and has its own loader (models.checkpoints.weights); here each parameter
is one tensor. A table names them: `encoder.{i}.up.kernel` to a `Rule`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.checkpoints.location import PICKLES
from models.checkpoints.names import Rule
from models.checkpoints.tensors import MAX_SHARD_BYTES, SafetensorsFolder, write_safetensors

M = TypeVar("M", bound=nnx.Module)
_NUMBER = re.compile(r"\.(\d+)\.")
_NORM = re.compile(r"(?<=LayerNorm\.)(?:gamma|beta)$")  # as checkpoints of TensorFlow's time call the two
_NORM_NAMES = {"gamma": "weight", "beta": "bias"}


def rule_of(path: str, table: Mapping[str, Rule]) -> tuple[Rule, str]:
    """The rule of a parameter and the name of its tensor; ValueError where the format has no word for it."""
    layer = _NUMBER.search(path)
    rule = table.get(_NUMBER.sub(".{i}.", path, count=1))
    if rule is None:
        raise ValueError(f"this checkpoint format has no tensor for {path}")
    return rule, rule.name.replace("{i}", layer.group(1)) if layer else rule.name


def load_listed(create: Any, folder: Path, table: Mapping[str, Rule], *, ignored: re.Pattern[str]) -> Any:
    """The module that `create()` describes with the weights of a folder, float32.

    ignored: tensors that may be there and are no parameters of ours. Errors: ValueError that names missing, unexpected
    and misshapen tensors.
    """
    source = SafetensorsFolder(checked(folder))
    graph, state = nnx.split(nnx.eval_shape(create))
    shapes, loaded, used = source.shapes(), {}, set()
    stored = {_NORM.sub(lambda match: _NORM_NAMES[match.group()], name): name for name in shapes}
    for path, leaf in nnx.to_flat_state(state):
        rule, name = rule_of(".".join(map(str, path)), table)
        wanted = rule.shape(leaf.get_value().shape)
        if name not in stored:
            raise ValueError(f"{folder} lacks {name}: it is not whole, or not of the family that its config names")
        found = shapes[stored[name]]
        if tuple(found) not in (wanted, (1, *wanted)):
            raise ValueError(f"{folder} does not fit its config: {name} is {found}, expected {wanted}")
        used.add(stored[name])
        values = np.asarray(source.view(stored[name]), np.float32).reshape(wanted)
        loaded[path] = leaf.replace(jnp.asarray(np.ascontiguousarray(values.T if rule.transpose else values)))
    unexpected = sorted(name for name in shapes.keys() - used if not ignored.search(name))
    if unexpected:
        raise ValueError(f"{folder} holds tensors that its config has no place for: {', '.join(unexpected[:4])}")
    return nnx.merge(graph, nnx.from_flat_state(loaded))


def checked(folder: Path) -> Path:
    """The folder; ValueError where it has no weights, as the copy of a Hub repository that holds but pickles."""
    if any(file.suffix == ".safetensors" or file.suffix in PICKLES for file in folder.iterdir()):
        return folder
    raise ValueError(
        f"{folder} has no .safetensors: pickles such as pytorch_model.bin can run code and are not fetched from the "
        "Hugging Face hub; name a revision with safetensors (hf:org/name@refs/pr/NUMBER) or convert a copy"
    )


def save_listed(
    model: nnx.Module, folder: Path, table: Mapping[str, Rule], config: Mapping[str, Any], lead: frozenset[str]
) -> None:
    """Write safetensors and config.json. lead: tensors that are stored with a dim of 1 in front."""
    folder.mkdir(parents=True, exist_ok=True)

    def entries() -> Iterator[Any]:
        for path, leaf in nnx.to_flat_state(nnx.state(model)):
            rule, name = rule_of(".".join(map(str, path)), table)
            values = np.asarray(leaf.get_value(), np.float32)
            values = np.ascontiguousarray(values.T if rule.transpose else values)
            values = values[None] if name in lead else values
            yield name, values.shape, np.dtype(np.float32), lambda values=values: values

    write_safetensors(folder, entries(), MAX_SHARD_BYTES)
    text = json.dumps({**config, "dtype": "float32"}, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")  # last: a folder with it is whole


def files_key(location: str) -> Any:
    """Names, sizes and a hash of the contents of a folder's files: what a stage key holds of a model.

    `hf:...` and `package:...` stand for themselves. ValueError where there is no such folder or file.
    """
    if location.startswith(("hf:", "package:")):
        return location
    folder = Path(location).expanduser()
    if not folder.exists():
        raise ValueError(
            f"no checkpoint at {location}: expected a folder, a .gguf file, hf:org/name or package:name/file"
        )
    digest = hashlib.blake2b(digest_size=8)
    below = [folder / "config.json", *(folder / "checkpoints").rglob("*"), *(folder / "tokenizer").rglob("*")]
    if folder.is_file():
        below = [folder]
    elif not (folder / "checkpoints").is_dir():
        below = list(folder.iterdir())
    for file in sorted(below):
        if file.is_file():
            digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
            with file.open("rb") as content:
                while block := content.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()

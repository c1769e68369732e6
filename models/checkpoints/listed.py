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

from models.checkpoints.names import Rule
from models.checkpoints.tensors import MAX_SHARD_BYTES, SafetensorsFolder, write_safetensors

M = TypeVar("M", bound=nnx.Module)
_NUMBER = re.compile(r"\.(\d+)\.")


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
    source = SafetensorsFolder(folder)
    graph, state = nnx.split(nnx.eval_shape(create))
    shapes, loaded, used = source.shapes(), {}, set()
    for path, leaf in nnx.to_flat_state(state):
        rule, name = rule_of(".".join(map(str, path)), table)
        wanted = rule.shape(leaf.get_value().shape)
        if name not in shapes:
            raise ValueError(f"{folder} lacks {name}: it is not whole, or not of the family that its config names")
        found = shapes[name]
        if tuple(found) not in (wanted, (1, *wanted)):
            raise ValueError(f"{folder} does not fit its config: {name} is {found}, expected {wanted}")
        used.add(name)
        values = np.asarray(source.view(name), np.float32).reshape(wanted)
        loaded[path] = leaf.replace(jnp.asarray(np.ascontiguousarray(values.T if rule.transpose else values)))
    unexpected = sorted(name for name in shapes.keys() - used if not ignored.search(name))
    if unexpected:
        raise ValueError(f"{folder} holds tensors that its config has no place for: {', '.join(unexpected[:4])}")
    return nnx.merge(graph, nnx.from_flat_state(loaded))


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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file; ValueError where it is no JSON."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def files_key(location: str) -> Any:
    """Names, sizes and a hash of the contents of a folder's files: what a stage key holds of a model.

    A location that is no folder here (`hf:...`) stands for itself.
    """
    folder = Path(location).expanduser()
    if not folder.is_dir():
        return location
    digest = hashlib.blake2b(digest_size=8)
    below = [folder / "config.json", *(folder / "checkpoints").rglob("*"), *(folder / "tokenizer").rglob("*")]
    for file in sorted(below if (folder / "checkpoints").is_dir() else folder.iterdir()):
        if file.is_file():
            digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
            with file.open("rb") as content:
                while block := content.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()

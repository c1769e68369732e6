"""The configuration of a run: frozen nested dataclasses, composed by `get_config()` in configs/*.py.

    config = load_config("configs/quickstart.py")
    config = apply_overrides(config, ["train.num_steps=100", "optimizer=AdamW(learning_rate=1e-3)"])

Each section is defined beside the code that it configures. Overrides are `field=value` along a dotted path; a value is
a Python literal, or `Name(field=literal)` where Name is a dataclass that the field declares. A member of a tuple of
named values is addressed by its name: `data.stages.near_dedup.threshold=0.7`.
"""

import ast
import dataclasses
import importlib
import re
import types
import typing
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from data.build import DataConfig
from data.loader import LoaderConfig
from models.config import ModelConfig
from models.encoder import EncoderConfig
from models.lora import LoRA
from models.quantize import NF4, Int8Weights
from models.sharding import MeshConfig
from models.tuning import Tuning
from train.checkpoint import CheckpointConfig
from train.evaluation import EvaluationConfig
from train.masked import MaskedLM
from train.objectives import NextToken
from train.optimizer import AdamW, Muon, WarmupCosine, WarmupStableDecay
from train.preference import Preference
from train.step import TrainConfig

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that one run is made of.

    run_dir: where the run's files go; a run with the same folder resumes.
    init_from: a checkpoint whose weights start this new run (see models.checkpoints), or None for random weights.
    lora, quantize: adapters to train, and how the weights under them lie (see models.tuning).
    objective: what is minimised (see train.objectives).
    """

    name: str
    data: DataConfig
    loader: LoaderConfig
    model: ModelConfig | EncoderConfig
    optimizer: AdamW | Muon
    schedule: WarmupCosine | WarmupStableDecay
    train: TrainConfig
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run_dir: str
    init_from: str | None = None
    lora: LoRA | None = None
    quantize: NF4 | Int8Weights | None = None
    objective: NextToken | Preference | MaskedLM = NextToken()

    @property
    def tuning(self) -> Tuning:
        """How the model that is trained differs from the plain one."""
        return Tuning(lora=self.lora, quantize=self.quantize, freeze=self.train.freeze)

    @property
    def draws(self) -> bool:
        """Whether the step makes a key for every row: its objective draws (masks), or its adapters have dropout."""
        return self.objective.draws or (self.lora is not None and self.lora.dropout > 0)


def load_config(path: str) -> Config:
    """The config that `get_config()` of a file in configs/ returns.

    path: `configs/quickstart.py` or `configs.quickstart`, relative to the repository root (where commands are run).
    Errors: ValueError when there is no such file or it has no get_config.
    """
    file = Path(path if path.endswith(".py") else path.replace(".", "/") + ".py")
    if file.is_absolute():
        file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    if not file.is_file():
        known = [str(known) for known in sorted(Path("configs").rglob("*.py")) if known.name != "__init__.py"]
        raise ValueError(f"no config at {path!r}{_suggest(path, known)}; --list-configs prints them all")
    if file.is_absolute():
        raise ValueError(f"{path!r} is outside the current folder; run from the root of the repository that holds it")
    module = importlib.import_module(".".join(file.with_suffix("").parts))
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path!r} has no function get_config(); a config file must define one that returns a Config")
    return module.get_config()


def list_configs(folder: Path = Path("configs")) -> list[tuple[str, str]]:
    """(path, first line of the docstring) of every config file, read without importing any."""
    found = []
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body):
            found.append((str(file), (ast.get_docstring(tree) or "").split("\n")[0]))
    return found


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """The config with each `dotted.path=value` applied in order; ValueError names what is wrong with one."""
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ValueError(f"override {override!r} is not of the form section.field=value")
        config = _replace(config, path.split("."), text, at="")
    return config


def to_json(value: Any) -> Any:
    """A config as JSON values; a dataclass becomes an object whose "type" is its class name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def from_json(cls: type[T], value: dict[str, Any]) -> T:
    """The dataclass that `to_json` wrote: how a run's `config.json` gives its model config back.

    Errors: ValueError where the object has a field or a type that the class does not declare.
    """
    return _from_json(cls, value, at=cls.__name__)


def _from_json(declared: Any, value: Any, at: str) -> Any:
    if isinstance(value, dict) and "type" in value:
        named = {cls.__name__: cls for cls in _dataclasses_in(declared)}
        if value["type"] not in named:
            raise ValueError(f"{at} is of type {value['type']!r}; expected one of {sorted(named)}")
        cls = named[value["type"]]
        hints = typing.get_type_hints(cls)
        unknown = set(value) - set(hints) - {"type"}
        if unknown:
            raise ValueError(f"{at}: {cls.__name__} has no field {sorted(unknown)[0]!r}{_suggest(min(unknown), hints)}")
        return cls(**{k: _from_json(hints[k], v, f"{at}.{k}") for k, v in value.items() if k != "type"})
    if isinstance(value, list):
        arguments = [arg for part in _alternatives(declared) for arg in typing.get_args(part) if arg is not Ellipsis]
        item = typing.Union[tuple(arguments)] if arguments else Any  # noqa: UP007 (built at run time)
        return tuple(_from_json(item, v, f"{at}.{i}") for i, v in enumerate(value))
    return value


def _replace(node: Any, path: list[str], text: str, at: str) -> Any:
    """`node` with the value at `path` replaced, every dataclass on the way made anew."""
    name, rest = path[0], path[1:]
    here = f"{at}.{name}" if at else name
    if isinstance(node, tuple):
        index = _member(node, name, at)
        return (*node[:index], _replace(node[index], rest, text, here), *node[index + 1 :])
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        raise ValueError(f"{here}: {at} is {node!r}, which has no fields")
    hints = typing.get_type_hints(type(node))
    fields = {field.name for field in dataclasses.fields(node)}
    if name not in fields:
        raise ValueError(f"{here}: {type(node).__name__} has no field {name!r}{_suggest(name, fields)}")
    value = _replace(getattr(node, name), rest, text, here) if rest else _parse(hints[name], text, here)
    try:
        return dataclasses.replace(node, **{name: value})
    except ValueError as error:
        raise ValueError(f"{here}={text}: {error}") from None


def _member(items: tuple, name: str, at: str) -> int:
    """The index of the tuple's member of that name (or number)."""
    if name.isdigit() and int(name) < len(items):
        return int(name)
    names = [getattr(item, "name", None) for item in items]
    if name not in names:
        known = [str(n) for n in names if n]
        raise ValueError(f"{at} has no member {name!r}{_suggest(name, known)}; it has {', '.join(known) or len(items)}")
    return names.index(name)


def _parse(declared: Any, text: str, at: str) -> Any:
    """The value that `text` stands for, checked against the declared type."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        node = None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _call(declared, node, at)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(value, list):
        value = tuple(value)
    fits, value = _fit(declared, value)
    if fits:
        return value
    if _fit(declared, text)[0]:  # an unquoted string that looks like another literal: run_dir=1
        return text
    raise ValueError(f"{at}={text}: expected {_describe(declared)}, got {type(value).__name__} {value!r}")


def _call(declared: Any, node: ast.Call, at: str) -> Any:
    """`Name(field=literal, ...)`: a dataclass of the declared type."""
    named = {cls.__name__: cls for cls in _dataclasses_in(declared)}
    name = node.func.id  # type: ignore[attr-defined]
    if name not in named:
        expected = ", ".join(named) or _describe(declared)
        raise ValueError(f"{at}: {name!r} is not a value of this field{_suggest(name, named)}; expected {expected}")
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"{at}: write {name}(field=value, ...), every field by its name")
    cls = named[name]
    hints = typing.get_type_hints(cls)
    values = {}
    for keyword in node.keywords:
        field = str(keyword.arg)
        if field not in {f.name for f in dataclasses.fields(cls)}:
            raise ValueError(f"{at}: {name} has no field {field!r}{_suggest(field, hints)}")
        values[field] = _parse(hints[field], ast.unparse(keyword.value), f"{at}.{field}")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{at}: {error}") from None


def _fit(declared: Any, value: Any) -> tuple[bool, Any]:
    """Whether a literal is of the declared type, and the literal as that type (int to float, nothing else)."""
    for part in _alternatives(declared):
        origin, arguments = typing.get_origin(part), typing.get_args(part)
        if part is Any:
            return True, value
        if part is type(None) and value is None:
            return True, None
        if origin is typing.Literal and value in arguments:
            return True, value
        if origin is tuple and isinstance(value, tuple):
            kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
            items = [_fit(kind, item) for kind, item in zip(kinds, value)]
            if len(kinds) == len(value) and all(ok for ok, _ in items):
                return True, tuple(item for _, item in items)
        if part is float and isinstance(value, int | float) and not isinstance(value, bool):
            return True, float(value)
        if part in (int, str, bool) and type(value) is part:
            return True, value
    return False, value


def _alternatives(declared: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return typing.get_args(declared)
    return (declared,)


def _dataclasses_in(declared: Any) -> list[type]:
    return [part for part in _alternatives(declared) if dataclasses.is_dataclass(part) and isinstance(part, type)]


def _describe(declared: Any) -> str:
    plain = isinstance(declared, type) and not typing.get_args(declared)
    return declared.__name__ if plain else re.sub(r"\b[\w.]+\.(\w+)", r"\1", str(declared))


def _suggest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

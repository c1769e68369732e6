"""Overrides: every mistake is refused with a sentence before anything starts, and every right one lands."""

import dataclasses
import json
from typing import Literal

import pytest

from train.config import apply_overrides, from_json, list_configs, load_config, to_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    learning_rate: float = 1e-3
    b2: float = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Momentum:
    learning_rate: float = 1e-2

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Near:
    name: str = "near"
    threshold: float = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Root:
    num_layers: int = 2
    optimizer: Adam | Momentum = Adam()
    stages: tuple[Near, ...] = (Near(), Near(name="far"))
    betas: tuple[float, float] = (0.9, 0.95)
    packing: Literal["first_fit", "concat"] = "first_fit"
    run_dir: str = "runs/x"
    init_from: str | None = None
    clip: float | None = 1.0
    ema: bool = False


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("num_layers=4", "num_layers", 4),
        ("optimizer.b2=1", "optimizer.b2", 1.0),
        ("optimizer=Momentum(learning_rate=0.5)", "optimizer", Momentum(learning_rate=0.5)),
        ("stages.far.threshold=0.5", "stages", (Near(), Near(name="far", threshold=0.5))),
        ("stages.0.threshold=0.5", "stages", (Near(threshold=0.5), Near(name="far"))),
        ("betas=(0, 1)", "betas", (0.0, 1.0)),
        ("packing=concat", "packing", "concat"),
        ("run_dir=12", "run_dir", "12"),
        ("run_dir='a b'", "run_dir", "a b"),
        ("run_dir=a=b", "run_dir", "a=b"),
        ("init_from=package:x/y.gguf", "init_from", "package:x/y.gguf"),
        ("clip=None", "clip", None),
        ("ema=True", "ema", True),
    ],
)
def test_an_override_sets_exactly_its_field(override, path, expected):
    changed = apply_overrides(Root(), [override])
    value = changed
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)
    top = path.split(".")[0]
    assert dataclasses.replace(changed, **{top: getattr(Root(), top)}) == Root()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("n_layers=4", "did you mean 'num_layers'"),
        ("num_layers", "section.field=value"),
        ("num_layers=1e3", "expected int, got float"),
        ("num_layers=True", "expected int, got bool"),
        ("ema=1", "expected bool"),
        ("packing=best_fit", "expected Literal"),
        ("betas=(1,)", "expected tuple"),
        ("optimizer.momentum=1", "Adam has no field 'momentum'"),
        ("optimizer=Adamm()", "did you mean 'Adam'"),
        ("optimizer=Adam(learning_rat=1)", "did you mean 'learning_rate'"),
        ("optimizer=Adam(0.1)", "every field by its name"),
        ("optimizer=Momentum(learning_rate=0)", "must be above 0"),
        ("optimizer=__import__('os')", "not a value of this field"),
        ("stages.nea.threshold=1", "did you mean 'near'"),
        ("run_dir.x=1", "has no fields"),
        ("clip=None or 1", "expected"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override, message):
    with pytest.raises(ValueError, match=r".") as caught:
        apply_overrides(Root(), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_gives_the_same_config_back():
    root = Root(optimizer=Momentum(), stages=(Near(threshold=0.1),), init_from="a")
    assert from_json(Root, json.loads(json.dumps(to_json(root)))) == root


def test_json_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="no field 'b3'"):
        from_json(Adam, {"type": "Adam", "b3": 1.0})
    with pytest.raises(ValueError, match="expected one of"):
        from_json(Root, {"type": "Root", "optimizer": {"type": "Sgd"}})


def test_a_missing_config_names_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'configs/quickstart.py'"):
        load_config("configs/quickstrat.py")


def test_every_config_file_is_listed_with_a_description():
    listed = dict(list_configs())
    assert "configs/quickstart.py" in listed
    assert all(len(line) > 10 for line in listed.values())

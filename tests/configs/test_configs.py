"""Every config builds, survives JSON, and has no field that nothing reads."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

from train.config import Config, from_json, list_configs, load_config, to_json

ROOMS = ("data", "models", "train", "launch")


@pytest.mark.parametrize("path", [path for path, _ in list_configs()])
def test_the_config_builds_and_its_model_survives_json(path):
    config = load_config(path)
    assert isinstance(config, Config)
    assert from_json(type(config.model), json.loads(json.dumps(to_json(config.model)))) == config.model
    assert path in ast.get_docstring(ast.parse(Path(path).read_text())), "the docstring opens with its command"


def _dataclasses_of(value) -> set[type]:
    if isinstance(value, tuple):
        return set().union(*(_dataclasses_of(item) for item in value))
    if not dataclasses.is_dataclass(value):
        return set()
    return {type(value)}.union(*(_dataclasses_of(getattr(value, f.name)) for f in dataclasses.fields(value)))


def test_every_config_field_is_read_somewhere():
    read = {
        node.attr
        for room in ROOMS
        for file in Path(room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    kinds = set().union(*(_dataclasses_of(load_config(path)) for path, _ in list_configs()))
    unread = [f"{kind.__name__}.{f.name}" for kind in kinds for f in dataclasses.fields(kind) if f.name not in read]
    assert not unread, f"fields that nothing reads: {sorted(unread)}"


def test_no_config_has_more_than_fifteen_fields():
    kinds = set().union(*(_dataclasses_of(load_config(path)) for path, _ in list_configs()))
    large = {kind.__name__: len(dataclasses.fields(kind)) for kind in kinds if len(dataclasses.fields(kind)) > 15}
    assert not large

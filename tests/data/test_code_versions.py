"""A stage's code and its version change together.

Stage keys hold the version, not the code: without a raised version, a dataset made by the old code would pass for one
made by the new. The file code_versions.json holds, for each stage, source and scoring module, the version and a hash of
the syntax tree (comments, docstrings and layout do not count) of all its `code_modules`. When this test fails: does the
change alter a byte that is written? Then raise VERSION in the module. Either way, note the new hash with

    python -m tests.data.test_code_versions --update
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

import xxhash

import data

ROOT = Path(__file__).parent.parent.parent
RECORD = Path(__file__).parent / "code_versions.json"
HOW = "raise VERSION if what is written changes, then: python -m tests.data.test_code_versions --update"


def current() -> dict[str, dict[str, Any]]:
    """{unit: {"version", "code"}} of every stage and source class, and of modules with VERSION and CODE_MODULES."""
    units: dict[str, dict[str, Any]] = {}
    for module in _modules():
        if hasattr(module, "VERSION"):
            paths = getattr(module, "CODE_MODULES", (module.__name__,))
            units[module.__name__] = {"version": module.VERSION, "code": _code((module.__name__, *paths))}
        for name, value in vars(module).items():
            keyed = inspect.isclass(value) and value.__module__ == module.__name__ and dataclasses.is_dataclass(value)
            if keyed and isinstance(getattr(value, "code_modules", None), tuple):
                unit = f"{module.__name__}.{name}"
                units[unit] = {"version": value.version, "code": _code((module.__name__, *value.code_modules))}
    return dict(sorted(units.items()))


def _modules() -> list[Any]:
    found = [info.name for info in pkgutil.walk_packages(data.__path__, "data.")]
    commands = {name for name in found if '__name__ == "__main__"' in _path(name).read_text(encoding="utf-8")}
    return [importlib.import_module(name) for name in sorted(set(found) - commands)]


def _code(modules: tuple[str, ...]) -> str:
    digest = xxhash.xxh3_64()
    for name in sorted(set(modules)):
        digest.update(f"{name}\n{tree_text(_path(name).read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()


def _path(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return path if path.is_file() else path.with_suffix("") / "__init__.py"


def tree_text(source: str) -> str:
    """The code of a module without comments, docstrings and layout, the same text under every Python version."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return _text(tree)


def _text(node: Any) -> str:
    # ast.dump leaves out empty fields since Python 3.13, and `type_params` is new in 3.12: skip what is empty.
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, []) and name != "kind"]
        return f"{type(node).__name__}({','.join(f'{name}={_text(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_text, node))}]"
    return repr(node)


def update() -> None:
    """Write down what the code is now."""
    RECORD.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")


def test_no_code_changed_without_its_version_being_looked_at() -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    found = current()
    changed = [name for name in found if name in recorded and found[name]["code"] != recorded[name]["code"]]
    missing = sorted(found.keys() ^ recorded.keys())
    versions = [name for name in found if name in recorded and found[name]["version"] != recorded[name]["version"]]
    assert not changed, f"the code of {changed} changed: {HOW}"
    assert not missing, f"new or gone: {missing}: {HOW}"
    assert not versions, f"versions of {versions} changed: {HOW}"


def test_every_stage_and_source_says_what_its_bytes_depend_on() -> None:
    for module in _modules():
        for name, value in vars(module).items():
            if not (inspect.isclass(value) and value.__module__ == module.__name__ and hasattr(value, "code_modules")):
                continue
            if getattr(value, "_is_protocol", False):
                continue
            assert isinstance(value.version, int), f"{module.__name__}.{name}.version is not an integer"
            for named in value.code_modules:
                assert _path(named).is_file(), f"{module.__name__}.{name}: no module {named}"


def test_comments_and_docstrings_do_not_count_but_code_does() -> None:
    one = 'def f(x):\n    """Doc."""\n    return x + 1  # comment\n'
    assert tree_text(one) == tree_text("def f(x):\n\n    return (x\n        + 1)\n")
    assert tree_text(one) != tree_text(one.replace("1", "2"))
    assert tree_text(one) != tree_text(one.replace("return", "yield"))


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python -m tests.data.test_code_versions --update")
    update()
    print(f"{RECORD.relative_to(ROOT)}: {len(current())} units")

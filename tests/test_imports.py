"""The import law of the house, read from the source: imports go one way, and importing a module does nothing.

data -> nothing of ours; models -> nothing of ours; train -> data, models; configs -> data, models, train;
launch -> config names only. Command files (with a `__main__` part) may import any room; no library imports a command.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "data": {"data"},
    "models": {"models"},
    "train": {"train", "data", "models"},
    "configs": {"configs", "data", "models", "train"},
    "launch": {"launch"},
}
ROOMS = set(ALLOWED)
TOP_LEVEL_FOLDERS = {*ROOMS, "tests"}
NO_ARRAYS = {"jax", "jaxlib", "flax", "optax", "orbax", "torch", "tensorflow"}  # never in data's library code


def library_and_command_files(room: str) -> tuple[list[Path], list[Path]]:
    """The modules of a room, and those with a `__main__` part.

    *_worker.py is a process that its library starts, not a command that a person does: library law holds for it.
    """
    files = sorted((ROOT / room).rglob("*.py"))
    commands = [
        path
        for path in files
        if is_command(ast.parse(path.read_text(encoding="utf-8"))) and not path.stem.endswith("_worker")
    ]
    return [path for path in files if path not in commands], commands


def is_command(tree: ast.Module) -> bool:
    """Whether the module runs as a command: `if __name__ == "__main__":`."""
    return any(
        isinstance(node, ast.If) and isinstance(node.test, ast.Compare)
        and isinstance(node.test.left, ast.Name) and node.test.left.id == "__name__"
        for node in tree.body
    )  # fmt: skip


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import anywhere in a file; `from a import b` also as "a.b"."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield node.lineno, module
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_libraries_import_only_the_rooms_below_them(room: str) -> None:
    libraries, _ = library_and_command_files(room)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in libraries
        for line, name in imported_modules(path)
        if name.split(".")[0] in (ROOMS | {"tests"}) - ALLOWED[room]
    ]
    assert not wrong, f"{room} may import {sorted(ALLOWED[room])} of ours only: {wrong}"


def test_no_library_imports_a_command() -> None:
    parts = [library_and_command_files(room) for room in ROOMS]
    commands = {module_name(path) for _, found in parts for path in found}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for libraries, _ in parts
        for path in libraries
        for line, name in imported_modules(path)
        if name in commands
    ]
    assert not wrong, wrong


def test_data_makes_no_arrays_on_accelerators() -> None:
    libraries, _ = library_and_command_files("data")
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in libraries
        for line, name in imported_modules(path)
        if name.split(".")[0] in NO_ARRAYS
    ]
    assert not wrong, wrong


def test_launch_knows_configs_by_name_only() -> None:
    libraries, _ = library_and_command_files("launch")
    assert not [path for path in libraries for _, name in imported_modules(path) if name.split(".")[0] == "configs"]


def test_no_module_is_outside_the_rooms() -> None:
    tops = {path.relative_to(ROOT).parts[0] for path in tracked_python_files()}
    assert tops <= TOP_LEVEL_FOLDERS, f"Python files outside {sorted(TOP_LEVEL_FOLDERS)}: {tops - TOP_LEVEL_FOLDERS}"


def test_every_folder_of_modules_is_a_package() -> None:
    folders = {path.parent for path in tracked_python_files()} - {ROOT}
    missing = [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not missing, f"no __init__.py in {missing}"


def test_importing_does_nothing() -> None:
    """At the top level of a module stand definitions and constants: no loops, no files opened, no printing."""
    harmless = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign,
                ast.AnnAssign, ast.If, ast.Try, ast.Assert)  # fmt: skip
    wrong = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, harmless):
                    continue
                if isinstance(node, ast.Expr) and (
                    isinstance(node.value, ast.Constant) or _defines_gradient(node.value)
                ):
                    continue
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)[:60]}")
    assert not wrong, wrong


def _defines_gradient(node: ast.expr) -> bool:
    """f.defvjp(forward, backward): how jax is told the gradient of a function of the same module."""
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("defvjp", "defjvp")
    )


def tracked_python_files() -> list[Path]:
    skipped = {".venv", ".git", "runs", "datasets", "build", "dist", ".ci"}
    return [path for path in ROOT.rglob("*.py") if not skipped & set(path.relative_to(ROOT).parts[:1])]


def test_the_law_sees_every_way_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test tests itself: each of these lines in data/ would be found."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "data" / "clean").mkdir(parents=True)
    path = tmp_path / "data" / "clean" / "bad.py"
    path.write_text(
        "import train.loop as x\nfrom models import config\n"
        "def f():\n    import launch.main\n    from ..stage import Stage\nfrom . import step\n"
    )
    names = {name for _, name in imported_modules(path)}
    assert {"train.loop", "models.config", "launch.main", "data.stage.Stage", "data.clean.step"} <= names

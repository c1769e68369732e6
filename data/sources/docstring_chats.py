"""Chats that every machine has: what a Python function does, asked with its signature, answered by its own docstring.

DocstringChats(packages=("numpy",), max_bytes=2_000_000)
DocstringChats(packages=("numpy",), max_bytes=2_000_000, form="preference")

The answer is the docstring's first paragraph. A preference has that as the chosen answer and the whole docstring as the
rejected one: a taste for brevity, which a small model can learn in minutes and a person can see.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data.chat import plain_text
from data.sources.base import make_document
from data.sources.python_packages import PythonPackages

MAX_SIGNATURE = 400  # characters; longer ones are no question that a person would ask
MIN_ANSWER = 40  # characters; shorter first paragraphs ("See above.") answer nothing
LONGER = 2.0  # a rejected answer is at least so many times as long as the chosen one


@dataclass(frozen=True, kw_only=True)
class DocstringChats(PythonPackages):
    """One chat, or preference, a documented public function. form: "messages" or "preference"."""

    name: str = "docstrings"
    form: str = "messages"

    code_modules: ClassVar[tuple[str, ...]] = (
        *PythonPackages.code_modules,
        "data.sources.docstring_chats",
        "data.chat",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("messages", "preference"):
            raise ValueError(f"{self.name}: form is {self.form!r}: expected messages or preference")

    def _extract(self, record: str, text: str, tree: ast.Module, meta: Mapping[str, Any]) -> Iterator[Any]:
        for line, name, signature, docstring in documented(tree):
            short = docstring.split("\n\n")[0].strip()
            if len(short) < MIN_ANSWER or len(signature) > MAX_SIGNATURE:
                continue
            if self.form == "preference" and len(docstring) < LONGER * len(short):
                continue
            asked = f"What does `{meta['module']}.{name}` do?\n\n```python\n{signature}\n```"
            sides = {"messages": short} if self.form == "messages" else {"chosen": short, "rejected": docstring}
            chats = {
                side: [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
                for side, answer in sides.items()
            }
            details = {**meta, "line": line, "title": name, "language": "en", **chats}
            yield make_document(self.name, f"{record}:{line}", plain_text(next(iter(chats.values()))), details)


def documented(tree: ast.Module) -> Iterator[tuple[int, str, str, str]]:
    """(line, qualified name, signature, docstring) of public functions and methods, top to bottom."""
    stack: list[tuple[str, ast.stmt]] = [("", node) for node in reversed(tree.body)]
    while stack:
        outer, node = stack.pop()
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        name = f"{outer}.{node.name}".lstrip(".")
        if isinstance(node, ast.ClassDef):
            stack += [(name, child) for child in reversed(node.body)]
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring:
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
            signature = f"{keyword} {node.name}({ast.unparse(node.args)}){returns}"
            yield node.lineno, name, signature, inspect.cleandoc(docstring)

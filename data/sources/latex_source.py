"""LaTeX sources made into one text: the main file found, inputs resolved, comments removed, macros expanded.

Everything works on a dict of file texts, so no input can reach outside of it; depth, size and the number of expansions
are bounded, so recursive inputs and macros end.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

MAX_INPUT_DEPTH = 12
MAX_CHARS = 20_000_000  # characters after inputs are resolved
MAX_EXPANSIONS = 200_000  # macro calls in one paper
MAX_EXPANDED = 40_000_000  # characters that macro calls may bring in
MAX_MACRO_DEPTH = 40
VERBATIM = ("verbatim", "verbatim*", "Verbatim", "lstlisting", "minted", "alltt", "BVerbatim", "LVerbatim")
VERBATIM_BLOCK = re.compile(r"\\begin\{(" + "|".join(map(re.escape, VERBATIM)) + r")\}.*?(?:\\end\{\1\}|\Z)", re.S)
COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*(?:\n[ \t]*)?")  # TeX drops the line end and the next indent too
COMMENT_BLOCK = re.compile(r"\\begin\{comment\}.*?(?:\\end\{comment\}|\Z)", re.S)
INPUT = re.compile(
    r"\\(?:input|include|subfile|subfileinclude)\s*\{\s*([^{}]{1,300}?)\s*\}|\\input\s+([^\s\\{}]{1,300})"
    r"|\\(?:sub)?(?:import|inputfrom|includefrom)\*?\s*\{\s*([^{}]{0,300}?)\s*\}\s*\{\s*([^{}]{1,300}?)\s*\}"
)
BODY = re.compile(r"\\begin\{document\}(.*?)(?:\\end\{document\}|\Z)", re.S)
FALSE = re.compile(r"\\iffalse(?![A-Za-z@])")
BRANCH = re.compile(r"\\(?:(if(?!f\b|thenelse|toggle)[A-Za-z@]*)|(else)|fi)(?![A-Za-z@])")


def strip_comments(text: str) -> str:
    """LaTeX without `%` comments and comment environments; verbatim blocks stay as they are."""
    parts, last = [], 0
    for block in VERBATIM_BLOCK.finditer(text):
        parts += [_strip_outside(text[last : block.start()]), block.group(0)]
        last = block.end()
    parts.append(_strip_outside(text[last:]))
    return "".join(parts)


def _strip_outside(text: str) -> str:
    def without(match: re.Match[str]) -> str:
        start, end, whole = match.start(), match.end(), match.string
        whole_line = start == 0 or whole[start - 1] == "\n"
        before_empty_line = whole[end : end + 1] == "\n" and not whole_line  # which ends the paragraph
        return match.group(1) + ("\n" if before_empty_line else "")

    return _without_false(COMMENT_BLOCK.sub("", COMMENT.sub(without, text)))


def _without_false(text: str) -> str:
    """Text without what stands between \\iffalse and its \\else or \\fi, which is how whole parts are commented out."""
    parts, last = [], 0
    while (found := FALSE.search(text, last)) is not None:
        depth, end = 0, found.end()
        for branch in BRANCH.finditer(text, found.end()):
            if depth == 0 and not branch.group(1):
                end = branch.end()
                break
            depth += 1 if branch.group(1) else 0 if branch.group(2) else -1
        else:
            break  # it never ends, and looking from each of the next ones could take hours
        parts.append(text[last : found.start()])
        last = end
    return "".join([*parts, text[last:]])


def find_main(files: Mapping[str, str]) -> str:
    """The path of the main file. ValueError where none has a document class.

    Where several do, the one with \\begin{document}, a known main name, nearest the root and longest wins.
    """
    candidates = [path for path, text in files.items() if re.search(r"\\document(?:class|style)\b", text)]
    if not candidates:
        plain = [path for path, text in files.items() if "\\begin{document}" in text]
        if not plain:
            raise ValueError("no file with \\documentclass")
        candidates = plain

    def rank(path: str) -> tuple[bool, bool, int, int, str]:
        name = PurePosixPath(path).stem.lower()
        known = name in ("main", "ms", "paper", "article", "manuscript", "root")
        return "\\begin{document}" not in files[path], not known, path.count("/"), -len(files[path]), path

    return min(candidates, key=rank)


def resolve_inputs(files: Mapping[str, str], main: str) -> tuple[str, list[str]]:
    """(text of `main` with its inputs in place, names that were asked for and are not there or would never end)."""
    inputs = _Inputs(files, main)
    text = inputs.resolve(main, (main,))
    if len(text) > MAX_CHARS:
        raise ValueError(f"more than {MAX_CHARS} characters after inputs are resolved")
    return text, inputs.missing


@dataclass
class _Inputs:
    """Files of a paper put into one another. No closure that calls itself: it would hold the paper until Python's
    collector of cycles runs, a hundred papers later."""

    files: Mapping[str, str]
    main: str
    missing: list[str] = field(default_factory=list)
    budget: int = MAX_CHARS

    def resolve(self, path: str, open_files: tuple[str, ...]) -> str:
        text = strip_comments(self.files[path])
        self.budget -= len(text)
        return INPUT.sub(lambda match: self._replace(match, path, open_files), text)

    def _replace(self, match: re.Match[str], path: str, open_files: tuple[str, ...]) -> str:
        name = (match.group(1) or match.group(2) or posixpath.join(match.group(3) or "", match.group(4))).strip()
        target = _find(self.files, name, PurePosixPath(path).parent, PurePosixPath(self.main).parent)
        if target is None or target in open_files or len(open_files) > MAX_INPUT_DEPTH or self.budget < 0:
            self.missing.append(name)
            return ""
        inner = self.resolve(target, (*open_files, target))
        if (body := BODY.search(inner)) is not None:
            inner = body.group(1)  # a subfile is a whole document, whose end is not that of the paper
        return inner if inner.endswith("\n\n") else inner.rstrip() + " "


def _find(files: Mapping[str, str], name: str, *folders: PurePosixPath) -> str | None:
    name = name.strip('"').removeprefix("./")
    for folder in folders:
        for candidate in (name, f"{name}.tex"):
            path = posixpath.normpath((folder / candidate).as_posix())
            if path in files:
                return path
    return None


@dataclass(frozen=True, slots=True)
class Macro:
    """A user macro. arguments: how many; default: of the first, where it is optional."""

    arguments: int
    body: str
    default: str | None = None


DEFINITION = re.compile(
    r"\\(?:re|provide)?(?:newcommand|command|DeclareRobustCommand)\*?\s*(?=[{\\])"
    r"|\\(?:newcommand|renewcommand|providecommand|DeclareRobustCommand|DeclareMathOperator)\*?\s*(?=[{\\])"
    r"|\\[gex]?def\s*(?=\\)|\\let\s*(?=\\)"
)
DEFINING = {"DeclareMathOperator", "def", "gdef", "edef", "xdef", "let"} | {
    prefix + name for prefix in ("", "re", "provide") for name in ("newcommand", "command", "DeclareRobustCommand")
}  # the words that DEFINITION can start with
COMMAND = re.compile(r"\\([A-Za-z@]+)\*?|\\(.)", re.S)
PARAMETER = re.compile(r"#([1-9])")


@dataclass
class Expander:
    """Expands the macros that a paper defines itself. Definitions take effect from where they stand."""

    macros: dict[str, Macro] = field(default_factory=dict)
    calls: int = 0
    brought: int = 0

    def expand(self, text: str, depth: int = 0) -> str:
        """`text` with its definitions taken in and its calls replaced; verbatim blocks are left alone."""
        out: list[str] = []
        position = 0
        while True:
            found = COMMAND.search(text, position)
            if found is None:
                out.append(text[position:])
                return "".join(out)
            out.append(text[position : found.start()])
            block = VERBATIM_BLOCK.match(text, found.start()) if found.group(1) == "begin" else None
            if block is not None:
                out.append(block.group(0))
                position = block.end()
                continue
            definition = DEFINITION.match(text, found.start()) if found.group(1) in DEFINING else None
            if definition is not None:
                position = self._define(text, definition.start(), definition.end())
                continue
            macro = self.macros.get(found.group(1) or "")
            if macro is None or depth >= MAX_MACRO_DEPTH or self.calls >= MAX_EXPANSIONS or self.brought > MAX_EXPANDED:
                out.append(found.group(0))
                position = found.end()
                continue
            self.calls += 1
            body, position = self._call(text, found.end(), macro)
            self.brought += len(body)
            out.append(self.expand(body, depth + 1))

    def _call(self, text: str, position: int, macro: Macro) -> tuple[str, int]:
        arguments: list[str] = []
        if macro.default is not None:
            value, position = read_optional(text, position)
            arguments.append(macro.default if value is None else value)
        for _ in range(macro.arguments - len(arguments)):
            value, position = read_argument(text, position)
            arguments.append(value)
        if macro.arguments == 0 and text[position : position + 1] == " ":
            position += 1  # TeX swallows the space after a command word
        if "#" not in macro.body:
            return macro.body, position
        values = dict(enumerate(arguments, 1))
        return PARAMETER.sub(lambda found: values.get(int(found.group(1)), ""), macro.body), position

    def _define(self, text: str, start: int, position: int) -> int:
        """Take in the definition at `start`; returns where the text goes on."""
        kind = text[start:position].strip()
        if kind.endswith("let"):
            names = re.compile(r"\\([A-Za-z@]+)\s*=?\s*(\\[A-Za-z@]+|.)", re.S).match(text, position)
            return names.end() if names else position
        name, position = read_argument(text, position)
        name = name.strip().lstrip("\\")
        if kind.endswith("def"):
            parameters = re.compile(r"((?:#[1-9])*)[^{}\\#]{0,20}(?=\{)").match(text, position)
            if parameters is None:
                return position
            body, position = read_argument(text, parameters.end())
            self._keep(name, Macro(parameters.group(1).count("#"), body))
            return position
        if "DeclareMathOperator" in kind:
            body, position = read_argument(text, position)
            self._keep(name, Macro(0, f"\\operatorname{{{body}}}"))
            return position
        count, position = read_optional(text, position)
        default, position = read_optional(text, position)
        body, position = read_argument(text, position)
        number = int(count) if count is not None and count.strip().isdigit() else 0
        self._keep(name, Macro(min(number, 9), body, default))
        return position

    def _keep(self, name: str, macro: Macro) -> None:
        if re.fullmatch(r"[A-Za-z@]+", name) and len(macro.body) < 5000 and name not in ("begin", "end", "section"):
            self.macros[name] = macro


def read_argument(text: str, position: int) -> tuple[str, int]:
    """(a braced group without its braces, or one token, where it ends)."""
    length = len(text)
    while position < length and text[position] in " \t\n":
        position += 1
    if position >= length:
        return "", position
    if text[position] != "{":
        found = COMMAND.match(text, position)
        return (found.group(0), found.end()) if found else (text[position], position + 1)
    end = match_brace(text, position)
    return text[position + 1 : end], min(end + 1, length)


BRACE = re.compile(r"\\.|[{}]", re.S)


def match_brace(text: str, position: int) -> int:
    """Where the group that opens at `position` closes; the end of the text where it never does."""
    depth = 0
    for found in BRACE.finditer(text, position):
        token = found.group(0)
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth <= 0:
                return found.start()
    return len(text)


OPTIONAL = re.compile(r"\s*\[((?:[^\[\]{}]|\{[^{}]{0,2000}\}|\[[^\[\]]{0,2000}\]){0,2000})\]")


def read_optional(text: str, position: int) -> tuple[str | None, int]:
    """(what stands in [...], where it ends), or (None, position) where nothing does."""
    found = OPTIONAL.match(text, position)
    return (found.group(1), found.end()) if found else (None, position)

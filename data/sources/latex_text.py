"""LaTeX (comments gone, macros expanded) as plain text: headings as `## `, lists as `- `, formulas kept as written."""

from __future__ import annotations

import re
import unicodedata

from data.sources.latex_source import VERBATIM, match_brace, read_argument, read_optional

MAX_DEPTH = 60
HEADINGS = {
    "part": 1,
    "chapter": 1,
    "section": 2,
    "subsection": 3,
    "subsubsection": 4,
    "paragraph": 5,
    "subparagraph": 6,
}
MATH = {"equation", "align", "eqnarray", "gather", "multline", "displaymath", "math", "flalign", "alignat", "dmath",
        "IEEEeqnarray", "xalignat", "empheq", "darray", "subequations", "eqnarray*", "split"}  # fmt: skip
MATH_WITH_ARGUMENT = {"alignat", "xalignat", "IEEEeqnarray", "empheq", "darray"}  # of columns or the like
LEFT_OUT = {"thebibliography", "references", "filecontents", "tikzpicture", "pspicture", "CCSXML", "acks*"}
FLOATS = {"figure", "table", "wrapfigure", "sidewaysfigure", "sidewaystable", "longtable", "SCfigure", "deluxetable",
          "plate", "wraptable"}  # fmt: skip
TABLES = {"tabular", "tabularx", "tabulary", "array", "longtable", "tabu", "deluxetable"}
DROPPED = {  # command -> arguments that go with it
    "label": 1, "includegraphics": 1,
    "vspace": 1, "hspace": 1, "bibliographystyle": 1, "bibliography": 1, "pagestyle": 1, "thispagestyle": 1,
    "setlength": 2, "addtolength": 2, "setcounter": 2, "addtocounter": 2, "color": 1, "textcolor": 1, "colorbox": 1,
    "fontsize": 2, "selectfont": 0, "input": 1, "include": 1, "graphicspath": 1, "epsfig": 1, "plotone": 1,
    "plottwo": 2, "altaffilmark": 1, "altaffiltext": 2, "affil": 1, "thanks": 1, "email": 1, "affiliation": 1,
    "hypersetup": 1, "usepackage": 1, "newcounter": 1, "newtheorem": 2, "theoremstyle": 1, "resizebox": 2,
    "scalebox": 1, "rule": 2, "cline": 1, "cmidrule": 1, "multirow": 2, "pageref": 1, "defcitealias": 2,
    "tablewidth": 1, "tabletypesize": 1, "raisebox": 1, "parbox": 1, "vskip": 0, "hskip": 0, "index": 1, "phantom": 1,
    "markboth": 2, "multicolumn": 2, "address": 1, "institute": 1, "curraddr": 1, "ead": 1, "orcid": 1, "preprint": 1,
    "titlerunning": 1, "authorrunning": 1, "captionsetup": 1, "lstinputlisting": 1, "inputminted": 2, "includepdf": 1,
    "includestandalone": 1, "ccsdesc": 1, "linespread": 1, "hyphenation": 1, "addcontentsline": 3, "subjclass": 1,
}  # fmt: skip
SYMBOLS = {"ldots": "…", "dots": "…", "LaTeX": "LaTeX", "TeX": "TeX", "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ",
           "OE": "Œ",
           "o": "ø", "O": "Ø", "aa": "å", "AA": "Å", "l": "ł", "L": "Ł", "i": "ı", "j": "ȷ", "S": "§", "P": "¶",
           "copyright": "©", "pounds": "£", "dag": "†", "ddag": "‡", "textbackslash": "\\", "textasciitilde": "~",
           "textendash": "–", "textemdash": "—", "quad": " ", "qquad": " ", "newline": "\n", "par": "\n\n",
           "textquotedblleft": "“", "textquotedblright": "”", "textregistered": "®", "degree": "°",
           "euro": "€"}  # fmt: skip
ACCENTS = {"'": "\u0301", "`": "\u0300", '"': "\u0308", "^": "\u0302", "~": "\u0303", "=": "\u0304", ".": "\u0307",
           "u": "\u0306", "v": "\u030c", "H": "\u030b", "c": "\u0327", "k": "\u0328", "r": "\u030a", "d": "\u0323",
           "b": "\u0331"}  # fmt: skip
TOKEN = re.compile(r"\\([A-Za-z@]+)\*?|\\(.)|(\$\$?)|([{}~&])|(``|''|---|--)|(\n[ \t]*\n\s*)", re.S)
CITATION = re.compile(r"[A-Za-z]{0,20}[cC]ite(?!style)[A-Za-z]{0,20}")
OPENING = re.compile(r"\s*\{")
DOLLARS = {"$": re.compile(r"(?<!\\)\$"), "$$": re.compile(r"(?<!\\)\$\$")}
ENSURE_MATH = re.compile(r"\\ensuremath\s*(?=\{)")
EMPTY_LINES, SPACE_BEFORE_MARK = re.compile(r"\n\s*\n"), re.compile(r" +([.,;:])")
PLAIN = {"``": "“", "''": "”", "---": "—", "--": "–", "~": " ", "&": " | ", "{": "", "}": ""}
ALGORITHM = {"STATE", "IF", "ELSE", "ELSIF", "ENDIF", "FOR", "FORALL", "ENDFOR", "WHILE", "ENDWHILE", "REQUIRE",
             "ENSURE", "RETURN", "State", "If", "Else", "ElsIf", "EndIf", "For", "EndFor", "While", "EndWhile",
             "Require", "Ensure", "Return", "REPEAT", "UNTIL", "Repeat", "Until"}  # fmt: skip


def latex_to_text(text: str) -> str:
    """The body of a document as text. References, figures and citations are left out, captions and formulas kept."""
    body = re.search(r"\\begin\{document\}(.*?)(?:\\end\{document\}|\Z)", text, re.S)
    return tidy(_render(body.group(1) if body else text, 0))


def title_of(text: str) -> str:
    """The argument of \\title as text; "" where there is none."""
    found = re.search(r"\\title\s*(?=[\[{])", text)
    if found is None:
        return ""
    _, position = read_optional(text, found.end())
    return " ".join(_render(read_argument(text, position)[0], 0).split())


def tidy(text: str) -> str:
    """Lines joined to paragraphs, one empty line between blocks; fenced code and formulas as they are."""
    blocks = []
    for index, part in enumerate(re.split(r"\x01", text)):
        if index % 2:
            blocks.append(part.strip("\n"))
            continue
        for block in EMPTY_LINES.split(part):
            lines = [" ".join(line.split()) for line in block.split("\n")]
            joined = ""
            for line in filter(None, lines):
                breaks = line.startswith(("- ", "#")) or " | " in line or joined.rpartition("\n")[2].startswith("#")
                joined += ("\n" if breaks and joined else " " if joined else "") + line
            if joined and joined not in ("|",):
                blocks.append(SPACE_BEFORE_MARK.sub(r"\1", joined).replace("()", "").strip())
    text = "\n\n".join(block for block in blocks if block.strip()).strip()
    return re.sub(r"(^- .*)\n\n(?=- )", r"\1\n", text, flags=re.M)


def _block(text: str) -> str:
    return f"\n\n\x01{text}\x01\n\n"


def _render(text: str, depth: int) -> str:
    out: list[str] = []
    position = 0
    if depth > MAX_DEPTH:
        return ""
    while (found := TOKEN.search(text, position)) is not None:
        out.append(text[position : found.start()])
        word, escaped, dollar, _, quote, paragraph = found.groups()
        position = found.end()
        if word == "begin":
            piece, position = _environment(text, position, depth)
        elif word is not None:
            piece, position = _command(text, word, position, depth)
        elif escaped is not None:
            piece, position = _escaped(text, escaped, position)
        elif dollar:
            piece, position = _math(text, dollar, position)
        elif paragraph:
            piece = "\n\n"
        else:
            piece = PLAIN[quote or found.group(0)]
        out.append(piece)
    out.append(text[position:])
    return "".join(out)


def _math(text: str, dollar: str, position: int) -> tuple[str, int]:
    end = DOLLARS[dollar].search(text, position)
    stop = end.start() if end else len(text)
    formula = text[position:stop]
    if end is None or (dollar == "$" and "\n\n" in formula):
        return "", position  # a lone dollar: what follows is no formula
    if dollar == "$$":
        return _block(f"$$\n{_plain_math(formula).strip()}\n$$"), end.end()
    return f"${' '.join(_plain_math(formula).split())}$", end.end()


def _plain_math(formula: str) -> str:
    """A formula without \\ensuremath, which says in text what is so already."""
    for _ in range(MAX_DEPTH if "\\ensuremath" in formula else 0):
        found = ENSURE_MATH.search(formula)
        if found is None:
            break
        end = match_brace(formula, found.end())
        formula = formula[: found.start()] + formula[found.end() + 1 : end] + formula[end + 1 :]
    return formula


def _escaped(text: str, character: str, position: int) -> tuple[str, int]:
    if character in "([":
        close = "\\)" if character == "(" else "\\]"
        stop = text.find(close, position)
        stop = len(text) if stop < 0 else stop
        formula = " ".join(_plain_math(text[position:stop]).split())
        return (f"${formula}$" if character == "(" else _block(f"$$\n{formula}\n$$")), stop + 2
    if character in ACCENTS and character not in "-":
        letter, position = read_argument(text, position)
        return _accent(character, letter), position
    if character == "\\":
        _, position = read_optional(text, position)
        return "\n", position
    return {" ": " ", "\n": " ", ",": " ", ";": " ", ":": " ", "!": "", "/": "", "-": "", "@": ""}.get(
        character, character
    ), position


def _accent(mark: str, letter: str) -> str:
    letter = {"\\i": "i", "\\j": "j"}.get(letter.strip(), letter.strip())
    return unicodedata.normalize("NFC", letter[:1] + ACCENTS[mark]) + letter[1:] if letter else ""


def _command(text: str, word: str, position: int, depth: int) -> tuple[str, int]:
    if word in HEADINGS:
        _, position = read_optional(text, position)
        title, position = read_argument(text, position)
        name = " ".join(_render(title, depth + 1).split())
        return (f"\n\n{'#' * HEADINGS[word]} {name}\n\n" if name else ""), position
    if word in DROPPED:
        for _ in range(2):
            _, position = read_optional(text, position)
        for _ in range(DROPPED[word]):
            if OPENING.match(text, position):
                _, position = read_argument(text, position)
        return "", position
    if word in SYMBOLS:
        return SYMBOLS[word], _after_word(text, position)
    if word in ACCENTS and len(word) == 1:
        letter, position = read_argument(text, position)
        return _accent(word, letter), position
    if word in ("ref", "eqref", "autoref", "cref", "Cref"):
        key, position = read_argument(text, position)
        return key.strip().rpartition(":")[2], position  # numbers exist only after typesetting: the label's name stands
    if word.lower() in ("citet", "textcite", "citetalias", "citeauthor"):  # part of the sentence, so a name must stay
        for _ in range(2):
            _, position = read_optional(text, position)
        key, position = read_argument(text, position)
        return f"[{key.strip()}]", position
    if CITATION.fullmatch(word):  # every package has its own: supercite, onlinecite, citeyearpar, parencites
        return "", _after_citation(text, position, several=word.endswith("s"))
    if word == "ensuremath":
        inner, position = read_argument(text, position)
        return f"${' '.join(_plain_math(inner).split())}$", position
    if word in ("footnote", "footnotetext", "marginpar"):
        _, position = read_optional(text, position)
        inner, position = read_argument(text, position)
        note = " ".join(_render(inner, depth + 1).split())
        return (f" ({note})" if note else ""), position
    if word in ("href", "texorpdfstring"):
        first, position = read_argument(text, position)
        second, position = read_argument(text, position)
        return _render(second if word == "href" else first, depth + 1), position
    if word in ("url", "path", "verb", "lstinline"):
        return _verbatim_argument(text, word, position)
    if word in ("title", "author", "date", "keywords"):
        _, position = read_optional(text, position)
        inner, position = read_argument(text, position)
        return (f"\n\n# {' '.join(_render(inner, depth + 1).split())}\n\n" if word == "title" else ""), position
    if word == "item":
        label, position = read_optional(text, position)
        return f"\n- {label + ' ' if label else ''}", position
    if word == "caption":
        _, position = read_optional(text, position)
        inner, position = read_argument(text, position)
        return f"\n\n{_render(inner, depth + 1)}\n\n", position
    if word in ALGORITHM:
        return f"\n- {word.lower() + ' ' if word.lower() != 'state' else ''}", _after_word(text, position)
    _, position = read_optional(text, position)
    return "", _after_word(text, position)  # unknown: its braced argument, if any, follows as text


def _after_citation(text: str, position: int, *, several: bool) -> int:
    """Where the text goes on behind the notes and keys of a citation, or of several in one command."""
    while True:
        _, end = read_optional(text, position)
        _, end = read_optional(text, end)
        if not OPENING.match(text, end):
            return position
        _, position = read_argument(text, end)
        if not several:
            return position


def _after_word(text: str, position: int) -> int:
    return position + 1 if text[position : position + 1] == " " else position


def _verbatim_argument(text: str, word: str, position: int) -> tuple[str, int]:
    if word in ("verb", "lstinline") and text[position : position + 1] not in ("{", ""):
        end = text.find(text[position], position + 1)
        end = len(text) if end < 0 else end
        return f"`{text[position + 1 : end]}`", end + 1
    inner, position = read_argument(text, position)
    return re.sub(r"\\([%#_&~])", r"\1", inner).strip(), position


def _environment(text: str, position: int, depth: int) -> tuple[str, int]:
    name, position = read_argument(text, position)
    inner, position = _until_end(text, position, name)
    base = name.rstrip("*")
    if name in VERBATIM:
        _, start = read_optional(inner, 0)
        code = re.sub(r"^\{[^}\n]*\}", "", inner[start:]).strip("\n").rstrip()
        return _block(f"```\n{code}\n```"), position
    if base in MATH:
        if base in MATH_WITH_ARGUMENT:
            _, start = read_optional(inner, 0)
            inner = inner[read_argument(inner, start)[1] :]
        formula = _plain_math(re.sub(r"\\label\s*\{[^{}]*\}|\\nonumber", "", inner))
        formula = "\n".join(line.strip() for line in formula.strip().split("\n") if line.strip())
        return _block(f"$$\n{formula}\n$$"), position
    if base in LEFT_OUT:
        return "", position
    if base in FLOATS and base not in TABLES:
        _, start = read_optional(inner, 0)
        return f"\n\n{_render(inner[start:], depth + 1)}\n\n", position
    if base in TABLES:
        _, start = read_optional(inner, 0)
        if base in ("tabularx", "tabulary"):
            _, start = read_argument(inner, start)
        _, start = read_argument(inner, start)
        rows = _render(re.sub(r"\\(?:hline|toprule|midrule|bottomrule)\b", "", inner[start:]), depth + 1)
        return f"\n\n{rows}\n\n", position
    heading = "\n\n## Abstract\n\n" if base == "abstract" else "\n\n"
    while (optional := read_optional(inner, 0))[0] is not None:
        inner = inner[optional[1] :]
    return f"{heading}{_render(inner, depth + 1)}\n\n", position


def _until_end(text: str, position: int, name: str) -> tuple[str, int]:
    """(what stands before the matching \\end{name}, where the text goes on)."""
    if name in VERBATIM:
        stop = text.find(f"\\end{{{name}}}", position)
        stop = len(text) if stop < 0 else stop
        return text[position:stop], min(stop + len(name) + 6, len(text))
    pattern = re.compile(r"\\(begin|end)\s*\{" + re.escape(name) + r"\}")
    open_count = 1
    for found in pattern.finditer(text, position):
        open_count += 1 if found.group(1) == "begin" else -1
        if open_count == 0:
            return text[position : found.start()], found.end()
    return text[position:], len(text)

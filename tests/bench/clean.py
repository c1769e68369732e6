"""How fast four published filters run, side by side with datatrove: `python -m tests.bench.clean [--docs N]`.

gopher_repetition, gopher_quality, c4 (datatrove's variant) and fineweb on English documents of about 1 kB, one core,
each filter on every document. datatrove runs in its own environment, named by SLUICE_DATATROVE_PYTHON (datatrove 0.10
with spacy); both sides take turns on the same slices of documents and count processor time, and the figures are
medians over the slices. Agreement is the share of documents on which all four filters decide alike.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from data.clean.c4 import C4
from data.clean.fineweb import FineWeb
from data.clean.gopher_quality import GopherQuality
from data.clean.gopher_repetition import GopherRepetition
from data.document import Document, Drop
from data.features import Features

SLICE = 200  # documents a turn
WARM_UP = 1000  # other documents, before any is timed: a run over a corpus has seen most of its words
STEPS = (GopherRepetition(), GopherQuality(), C4(variant="datatrove"), FineWeb())
PEER = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline import filters as f
filters = [f.GopherRepetitionFilter(), f.GopherQualityFilter(), f.C4QualityFilter(), f.FineWebQualityFilter()]
for line in sys.stdin:
    texts = json.loads(line)
    start = time.process_time()
    out = [[f.filter(Document(text=text, id="0")) is True for f in filters] for text in texts]
    print(json.dumps([time.process_time() - start, out]), flush=True)
"""


def english_documents(count: int) -> list[str]:
    """Prose of about 1 kB: paragraphs of docstrings of the installed packages, in a fixed order, each once.

    A paragraph counts as prose with 25 words, an end mark, and 95 % letters, spaces and ordinary marks; its lines are
    joined. Paragraphs of one file make a document, until it has 1,000 characters.
    """
    texts: list[str] = []
    seen: set[str] = set()
    for path in sorted(_python_files(), key=lambda path: hash_of(str(path.name) + path.parent.name)):
        parts: list[str] = []
        for paragraph in (p for text in _docstrings(path) for p in text.split("\n\n")):
            line = " ".join(paragraph.split())
            if line in seen or line.count(" ") < 24 or line[-1] not in ".!?":
                continue
            if len(_PROSE.findall(line)) < 0.95 * len(line):
                continue
            seen.add(line)
            parts.append(line)
            if sum(map(len, parts)) >= 1000:
                texts.append("\n\n".join(parts))
                parts = []
        if len(texts) >= count:
            break
    return texts[:count]


_PROSE = re.compile(r"[A-Za-z ,.'-]")


def hash_of(text: str) -> int:
    """A fixed order that mixes packages."""
    value = 0
    for byte in text.encode():
        value = (value * 1099511628211 + byte) % (1 << 64)
    return value


def _python_files() -> Iterator[Path]:
    for name in ("stdlib", "purelib"):
        yield from Path(sysconfig.get_path(name)).rglob("*.py")


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            yield ast.get_docstring(node) or ""


def judge(texts: list[str]) -> tuple[float, list[list[bool]]]:
    """(seconds, verdicts [documents, filters]; true is kept) of our filters."""
    start = time.process_time()
    verdicts = []
    for text in texts:
        document, features = Document(id="0", text=text, source="bench"), Features(text)
        verdicts.append([not isinstance(step(document, features), Drop) for step in STEPS])
    return time.process_time() - start, verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=int, default=3000)
    texts = english_documents(parser.parse_args().docs + WARM_UP)
    judge(texts[:WARM_UP])
    texts = texts[WARM_UP:]
    slices = [texts[i : i + SLICE] for i in range(0, len(texts), SLICE)]
    python = os.environ.get("SLUICE_DATATROVE_PYTHON")
    peer = None
    if python:
        peer = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ask(peer, slices[0])  # loads its tokenizer
    ours, theirs, ratios, alike = [], [], [], 0
    for part in slices:
        seconds, verdicts = judge(part)
        ours.append(len(part) / seconds)
        if peer:
            peer_seconds, peer_verdicts = ask(peer, part)
            theirs.append(len(part) / peer_seconds)
            ratios.append(peer_seconds / seconds)
            alike += sum(a == b for a, b in zip(verdicts, peer_verdicts))
    result: dict[str, object] = {"docs_per_s": round(statistics.median(ours), 1)}
    print(f"{len(texts)} documents, {sum(map(len, texts)) / len(texts):.0f} characters on average")
    print(f"{'ours':<12}{result['docs_per_s']:>10} documents/s")
    if peer:
        peer.communicate()
        result["over_datatrove"] = round(statistics.median(ratios), 2)
        result["agreement"] = round(alike / len(texts), 5)
        print(f"{'datatrove':<12}{statistics.median(theirs):>10.1f} documents/s")
        print(f"{'ratio':<12}{result['over_datatrove']:>10}   same verdicts on {alike / len(texts):.2%}")
    else:
        result["missing"] = ["datatrove"]
        print("datatrove is missing: set SLUICE_DATATROVE_PYTHON to an interpreter that has it", file=sys.stderr)
    print(json.dumps(result))


def ask(peer: subprocess.Popen[str], texts: list[str]) -> tuple[float, list[list[bool]]]:
    assert peer.stdin is not None and peer.stdout is not None
    peer.stdin.write(json.dumps(texts) + "\n")
    peer.stdin.flush()
    seconds, verdicts = json.loads(peer.stdout.readline())
    return seconds, verdicts


if __name__ == "__main__":
    main()

"""A linear text classifier on hashed n-grams: trained in seconds, stored as plain arrays, used as a filter.

    python -m data.classifier train --positive FILE --negative FILE --out MODEL.npz
    python -m data.classifier score --model MODEL.npz --input FILE

FILE holds one text a line, or JSON objects with a "text" field (.jsonl). One text in ten is held out, by a hash of the
text, for the precision, recall and calibration that `train` prints. The model is that of data/clean/linear.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.clean.linear import evaluate, held_out, load_classifier, train


def read_texts(path: Path) -> Iterator[str]:
    """Texts of a file, one a line; of .jsonl, the "text" field of each object."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if path.suffix == ".jsonl" and line.strip():
                    value = json.loads(line)
                    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
                        raise ValueError(f'{path}, line {number}: expected an object with a "text" string')
                    yield value["text"]
                elif line.strip():
                    yield line.rstrip("\n")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as texts: {error}") from None


def _split(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    unique = list(dict.fromkeys(texts))
    return [text for text in unique if not held_out(text)], [text for text in unique if held_out(text)]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m data.classifier", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("train", help="fit a model to two files of texts")
    fit.add_argument("--positive", type=Path, required=True)
    fit.add_argument("--negative", type=Path, required=True)
    fit.add_argument("--out", type=Path, required=True)
    rate = commands.add_parser("score", help="print the probability of each text of a file")
    rate.add_argument("--model", type=Path, required=True)
    rate.add_argument("--input", type=Path, required=True)
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "score":
            classifier = load_classifier(arguments.model)
            for text in read_texts(arguments.input):
                print(f"{classifier(text):.4f}\t{text[:80]}")
            return
        positive, positive_out = _split(read_texts(arguments.positive))
        negative, negative_out = _split(read_texts(arguments.negative))
        classifier = train(positive, negative)
        print(evaluate(classifier, positive_out, negative_out))
        classifier.save(arguments.out)
        print(f"wrote {arguments.out}, {arguments.out.stat().st_size:,} bytes")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

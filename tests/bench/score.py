"""Scoring documents against `transformers` on torch: SmolLM2-135M, float32, the same CPU, interleaved.

    python -m tests.bench.score [--rounds 3] [--documents 200]

200 documents: docstrings of Python's own standard library, 40 to 1,600 characters, in the order of their modules. The
peer scores padded batches of 16 in the given order with `no_grad` on all cores, and keeps no logits longer than needed.
Both sides must give the same nats for every document. Compilation is not counted. Medians over the rounds.
"""

import argparse
import ast
import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoints.load import load_checkpoint
from models.command import use_compile_cache
from models.scoring import Scorer
from tests.bench.decode import CHECKPOINT, interleaved, peer_model

PEER_BATCH = 16


def documents(count: int) -> list[str]:
    """Docstrings of the standard library's modules, the same for one version of Python."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if 40 <= len(text) <= 1600:
                    found.append(text)
    step = max(1, len(found) // count)
    return found[::step][:count]


def peer_score(model: Any, ids: list[list[int]]) -> list[float]:
    """Nats of every document, padded batches in the given order."""
    import torch

    nats: list[float] = []
    with torch.no_grad():
        for start in range(0, len(ids), PEER_BATCH):
            batch = ids[start : start + PEER_BATCH]
            width = max(map(len, batch))
            tokens = torch.tensor([document + [0] * (width - len(document)) for document in batch])
            mask = torch.tensor([[1] * len(document) + [0] * (width - len(document)) for document in batch])
            logits = model(tokens, attention_mask=mask).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="none"
            )
            nats += (losses.reshape(len(batch), -1) * mask[:, 1:]).sum(dim=1).tolist()
    return nats


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.score", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=200)
    arguments = parser.parse_args()
    use_compile_cache()
    loaded = load_checkpoint(CHECKPOINT)
    assert loaded.tokenizer is not None
    scorer, peer = Scorer(loaded.model, loaded.tokenizer), peer_model(loaded)
    ids = [loaded.tokenizer.encode_prompt(text) for text in documents(arguments.documents)]
    sides: dict[str, Callable[[], Any]] = {"ours": lambda: scorer.score_ids(ids)[0]}
    if peer is not None:
        sides["peer"] = lambda: peer_score(peer, ids)
    seconds, found = interleaved(sides, arguments.rounds)
    tokens = sum(map(len, ids))
    result: dict[str, Any] = {"docs_per_s": len(ids) / seconds["ours"], "tokens_per_s": tokens / seconds["ours"]}
    print(f"{len(ids)} documents, {tokens:,} tokens\n{'':<14}{'seconds':>10}{'tokens/s':>10}")
    for name, value in seconds.items():
        print(f"{'transformers' if name == 'peer' else name:<14}{value:>10.2f}{tokens / value:>10.0f}")
    if peer is None:
        result["missing"] = ["transformers on torch"]
    else:
        result["over_transformers"] = seconds["peer"] / seconds["ours"]
        apart = np.abs(np.array(found["ours"]) / np.array(found["peer"]) - 1)
        print(f"largest relative difference of a document's nats: {apart.max():.1e}")
        assert apart.max() < 1e-3, "the two sides do not score the same thing"
    print(json.dumps(result))


if __name__ == "__main__":
    main()

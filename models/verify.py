"""The parity certificate: a checkpoint's logits here against those of transformers on torch, on 256 tokens and more.

python -m models.verify --checkpoint DIR

Ours is computed in float32 and in bfloat16, theirs in float32. Prints the numbers, writes them as parity.json beside
the checkpoint (--out: elsewhere), and exits with 1 where a gate is missed. Needs torch and transformers. A run is
exported to a temporary Hugging Face folder first, so its certificate covers the export.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from models.command import run_command, use_compile_cache


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, help="run folder, HF folder, .gguf, hf:ORG/NAME, package:NAME/FILE"
    )
    parser.add_argument("--text", type=Path, help="a file whose text is compared; default: a built-in passage")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="only this compute dtype; default: both")
    parser.add_argument("--out", type=Path, help="where the certificate goes; default: beside the checkpoint")
    return parser.parse_args(argv)


def reference_logits(loaded: Any, ids: np.ndarray) -> np.ndarray:
    """[T, V] float32 logits of transformers for the same checkpoint."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ValueError(
            "the certificate compares with transformers on torch: pip install torch transformers"
        ) from None
    from models.checkpoints.save import save_hf

    where = loaded.location
    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True}
    with tempfile.TemporaryDirectory() as temporary:
        if where.kind == "gguf":
            model = AutoModelForCausalLM.from_pretrained(where.path.parent, gguf_file=where.path.name, **options)
        elif where.kind == "run":
            save_hf(loaded.model, Path(temporary))
            model = AutoModelForCausalLM.from_pretrained(temporary, **options)
        else:
            model = AutoModelForCausalLM.from_pretrained(where.path, **options)
        with torch.no_grad():
            return model.eval()(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float().numpy()


def comparison_ids(loaded: Any, text: str | None) -> np.ndarray:
    """The tokens that are compared: of the text, or drawn at random where the checkpoint has no tokenizer."""
    from models.parity import MIN_TOKENS, PASSAGE

    limit = loaded.config.embedding.max_positions or 2048
    if loaded.tokenizer is None:
        rng = np.random.default_rng(0)
        return rng.integers(0, loaded.config.vocab_size, min(limit, 2 * MIN_TOKENS)).astype(np.int32)
    ids = np.asarray(loaded.tokenizer.encode_prompt(text or PASSAGE), np.int32)[: min(limit, 2048)]
    if len(ids) < min(MIN_TOKENS, limit):
        raise ValueError(f"the text has {len(ids)} tokens; give at least {MIN_TOKENS}, or position errors stay unseen")
    return ids


def run(argv: list[str]) -> int:
    """Load both, compare, write the certificate."""
    arguments = parse_arguments(argv)
    from models.checkpoints.load import load_checkpoint
    from models.parity import GATES, compare, our_logits

    use_compile_cache()
    text = arguments.text.read_text(encoding="utf-8") if arguments.text else None
    reference, parities = None, {}
    for dtype in [arguments.dtype] if arguments.dtype else GATES:
        loaded = load_checkpoint(arguments.checkpoint, dtype=dtype)
        ids = comparison_ids(loaded, text)
        reference = reference_logits(loaded, ids) if reference is None else reference
        parities[dtype] = compare(our_logits(loaded.model, ids), reference, ids, dtype)
    failures = [failure for parity in parities.values() for failure in parity.failures]
    certificate = {
        "checkpoint": str(arguments.checkpoint),
        "passed": not failures,
        **{dtype: parity.as_json() for dtype, parity in parities.items()},
    }
    path = loaded.location.path
    beside = (path if path.is_dir() else path.parent) / "parity.json"
    if arguments.checkpoint.startswith("package:"):  # an installed package is not ours to write into
        beside = Path(path.stem + ".parity.json")
    out = arguments.out or beside
    out.write_text(json.dumps(certificate, indent=2) + "\n")
    print(json.dumps(certificate, indent=2))
    for failure in failures:
        print(f"FAILED: {failure}")
    print(f"certificate written to {out}")
    return 1 if failures else 0


if __name__ == "__main__":
    run_command(run)

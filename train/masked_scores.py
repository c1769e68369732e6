"""How well a masked language model guesses hidden tokens of the held-out documents, beside a unigram model.

python -m train.masked_scores --run runs/mlm_tiny

The unigram model knows how often each token occurs in the training rows (add one), and nothing else. Prints one JSON
object: nats and share of right guesses a hidden token, of both, over the same hidden tokens.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.command import run_command


def masked_scores(run: Path, *, batches: int = 200) -> dict[str, int | float]:
    """The figures of a run; batches: of training rows from which tokens are counted."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from data.loader import LoaderConfig, open_loader
    from data.tokenizer import load_tokenizer
    from models.checkpoints.encoder_run import load_encoder_run
    from models.checkpoints.run import read_run_json
    from train.config import from_json
    from train.evaluation import open_heldout_rows
    from train.masked import MaskedLM, hide, row_content_keys

    config = read_run_json(run)
    model, dataset = load_encoder_run(run), Path(config["data"]["path"])
    graph, state = nnx.split(model)
    settings = from_json(MaskedLM, config["objective"])
    loading = from_json(LoaderConfig, config["loader"])
    size, mask_id = model.config.vocab_size, model.config.mask_id
    counts = np.ones(size)
    loader = open_loader(dataset, loading, tokenizer=load_tokenizer(dataset / "tokenizer"))
    for step in range(batches):
        batch = loader.batch(step)
        counts += np.bincount(batch["inputs"][batch["positions"] > 0], minlength=size)
    unigram_V = np.log(counts / counts.sum())

    @jax.jit
    def guess(state: Any, batch: Any) -> Any:
        model = nnx.merge(graph, state)
        maskable_BT = (batch["segment_ids"] > 0) & (batch["positions"] > 0)
        keys_B2 = row_content_keys(batch["inputs"])
        places_BM, hidden_BM, shown_BT = hide(
            batch["inputs"], maskable_BT, keys_B2, settings, mask_id=mask_id, vocab_size=size
        )
        states_BTD = model(shown_BT, batch["segment_ids"], batch["positions"])
        logits_BMV = model.logits(jnp.take_along_axis(states_BTD, places_BM[:, :, None], axis=1))
        true_BM = jnp.take_along_axis(batch["inputs"], places_BM, axis=1)
        nll_BM = -jnp.take_along_axis(jax.nn.log_softmax(logits_BMV), true_BM[:, :, None], axis=-1)[:, :, 0]
        return nll_BM, true_BM, jnp.argmax(logits_BMV, axis=-1) == true_BM, hidden_BM

    nats = right = unigram_nats = unigram_right = hidden = 0.0
    for part in open_heldout_rows(dataset, loading, None).values():
        for batch in part.batches():
            nll, true, hit, real = (np.asarray(value) for value in guess(state, dict(batch)))
            hidden += real.sum()
            nats += nll[real].sum()
            right += hit[real].sum()
            unigram_nats -= unigram_V[true[real]].sum()
            unigram_right += (true[real] == unigram_V.argmax()).sum()
    found = {"nats": nats, "right": right, "unigram_nats": unigram_nats, "unigram_right": unigram_right}
    return {"hidden_tokens": int(hidden)} | {name: round(float(value / hidden), 4) for name, value in found.items()}


def run(argv: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m train.masked_scores", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a run that was trained with objective=MaskedLM()")
    print(json.dumps(masked_scores(parser.parse_args(argv).run)))
    return 0


if __name__ == "__main__":
    run_command(run)

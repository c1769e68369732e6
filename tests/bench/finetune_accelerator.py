"""Steps of LoRA and QLoRA on a model of the shape of Llama 3 8B, on one accelerator: tokens/s and peak memory.

    python -m tests.bench.finetune                                runs this too where jax has an accelerator
    python -m tests.bench.finetune_accelerator lora --rows 4      one of them, in this process: a line of JSON

Weights are made up on the device, leaf by leaf in their own dtype, so that the most memory that was ever held is what
the step needs and not what making a model takes. Each tuning runs in a process of its own, for the same reason.
torchtune's published figures, for an RTX 4090: LoRA 3,083 tokens/s at 16.2 GiB, QLoRA 2,413 at 7.4.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.llama3_8b_qlora import get_model
from models.config import ModelConfig
from models.lora import LoRA
from models.quantize import NF4
from models.sharding import MeshConfig, batch_sharding, make_mesh
from models.tuning import Tuning
from train.objectives import NextToken
from train.optimizer import AdamW, WarmupCosine, make_optimizer, make_schedule
from train.state import abstract_state, create_state, describe_model, make_params, new_state, shardings_of
from train.step import Batch, TrainConfig, make_train_step

SEQ_LEN = 2048
ROWS = (8, 4, 2, 1)  # the most that fit are measured
LORA = LoRA(targets=("q", "v"), rank=8, alpha=32.0, dropout=0.05)
TUNINGS = {"lora": Tuning(lora=LORA), "qlora": Tuning(lora=LORA, quantize=NF4())}
GIB = 1 << 30


def made_up(params: Any) -> Any:
    """Values for every leaf of a tree of shapes: small floats without order, any bytes for packed weights."""

    def values(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        number = jnp.arange(leaf.size, dtype=jnp.uint32).reshape(leaf.shape) * jnp.uint32(2_654_435_761)  # Knuth
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return (number >> 16).astype(leaf.dtype)
        if str(path[-1].key) == "scale":  # of norms
            return jnp.ones(leaf.shape, leaf.dtype)
        return ((number >> 8).astype(jnp.float32) / (1 << 24) * 0.04 - 0.02).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(values, params)


def tuning_step(model: ModelConfig, tuning: Tuning, rows: int, seq_len: int) -> Any:
    """A function that makes one step and waits for it."""
    options = TrainConfig(num_steps=1000, vocab_chunk=min(16_032, model.vocab_size))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        graphdef, axes, placements = describe_model(model, mesh, tuning)
        tx = make_optimizer(AdamW(learning_rate=2e-4, weight_decay=0.0), axes)
        shapes = jax.eval_shape(lambda: make_params(model, 0, tuning))
        create = lambda: new_state(made_up(shapes), tx, with_ema=False, axes=axes)  # noqa: E731
        abstract = abstract_state(create, placements, mesh)
        step = make_train_step(
            NextToken().make(options),
            graphdef,
            tx,
            make_schedule(WarmupCosine(warmup_steps=1), options.num_steps),
            options,
            shardings=shardings_of(abstract),
            batch_sharding=batch_sharding(mesh),
            dropout=True,
        )
        held = {"state": create_state(create, abstract)}
        batch = jax.device_put(random_rows(model.vocab_size, rows, seq_len), batch_sharding(mesh))

    def run() -> float:
        with jax.set_mesh(mesh):
            held["state"], metrics = step(held["state"], batch)
        return float(metrics["loss"])

    return run


def random_rows(vocab_size: int, rows: int, seq_len: int) -> Batch:
    """Rows without padding, one document each."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, seq_len + 1)).astype(np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones((rows, seq_len), np.int32),
        "positions": np.tile(np.arange(seq_len, dtype=np.int32), (rows, 1)),
        "loss_weights": np.ones((rows, seq_len), np.float32),
    }  # type: ignore[dict-item]


def measure(model: ModelConfig, tuning: Tuning, rows: int, seq_len: int, steps: int) -> dict[str, Any] | None:
    """Median tokens/s, and GiB that the device held at most (None where it does not say); None: does not fit."""
    try:
        run = tuning_step(model, tuning, rows, seq_len)
        losses, times = [run() for _ in range(2)], []
        for _ in range(steps):
            start = time.perf_counter()
            losses.append(run())
            times.append(time.perf_counter() - start)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    assert np.isfinite(losses).all(), losses
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    rate = rows * seq_len / statistics.median(times)
    return {"tokens_per_s": rate, "peak_gib": None if peak is None else peak / GIB, "rows": rows}


def accelerator_figures(steps: int) -> dict[str, Any] | None:
    """Figures of every tuning with the most rows that fit, and the device; None where there is no accelerator.

    To be called before this process has made an array: jax takes most of a GPU's memory then.
    """
    device = child("device")
    if device is None:
        return None
    found: dict[str, Any] = {"device": device}
    for name in TUNINGS:
        measured = (child(name, "--rows", str(rows), "--steps", str(steps)) for rows in ROWS)
        found[name] = next((figures for figures in measured if figures is not None), None)
        shown = "does not fit"
        if found[name] is not None:
            peak = found[name]["peak_gib"]
            shown = f"{found[name]['tokens_per_s']:,.0f} tokens/s, {found[name]['rows']} rows of {SEQ_LEN}"
            shown += "" if peak is None else f", {peak:.1f} GiB at most"
        print(f"Llama 3 8B, {name}: {shown}", flush=True)
    return found


def child(*arguments: str) -> Any:
    """What this module prints in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.finetune_accelerator", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """One measurement, as the last line; null where it does not fit, or there is no accelerator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("device", *TUNINGS))
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--layers", type=int, help="fewer layers and narrower ones, to try this where there is no room")
    options = parser.parse_args()
    model, seq_len = get_model(), SEQ_LEN
    if options.layers:
        small = {"embed_dim": 256, "num_heads": 8, "num_kv_heads": 2, "head_dim": 32, "mlp_dim": 896}
        model, seq_len = dataclasses.replace(model, num_layers=options.layers, vocab_size=1024, **small), 128
    if options.what == "device":
        print(json.dumps(None if jax.default_backend() == "cpu" else jax.devices()[0].device_kind))
    else:
        print(json.dumps(measure(model, TUNINGS[options.what], options.rows, seq_len, options.steps)))


if __name__ == "__main__":
    main()

"""Time and memory of attention by kernel and sequence length, forward and gradient, on this machine's device.

    python -m tests.bench.attention [--lengths 512,1024,2048,4096] [--rounds 3]

One packed row of 8 query heads and 4 key/value heads of 64, float32 on a CPU and bfloat16 elsewhere. Time: one forward
and backward pass, median of interleaved rounds. Memory: what the compiler sets aside beside inputs and outputs
(`memory_analysis`), MB. A kernel that cannot run here is named with its reason.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from models.attention import AttentionShape, attention, choose_kernel

HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64
KERNELS = ("dense", "blockwise", "splash", "cudnn_packed", "cudnn")


def compiled_gradient(kernel: str, length: int) -> tuple[Any, tuple, float]:
    """(compiled function, its arguments, temporary MB) of one kernel at one length; ValueError where it cannot run."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    shape = AttentionShape(
        queries=length,
        keys=length,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=jnp.dtype(dtype).name,
    )
    choose_kernel(shape, kernel)  # type: ignore[arg-type]
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (1, length, HEADS, HEAD_DIM), dtype)
    k, v = (jax.random.normal(key, (1, length, KV_HEADS, HEAD_DIM), dtype) for key in keys[1:])
    segments = (jnp.arange(length) // (length // 4) + 1)[None].astype(jnp.int32)  # four documents in the row

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = attention(q, k, v, segment_ids_BT=segments, scale=HEAD_DIM**-0.5, kernel=kernel)  # type: ignore[arg-type]
        return jnp.sum(out.astype(jnp.float32) ** 2)

    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, v).compile()
    return compiled, (q, k, v), compiled.memory_analysis().temp_size_in_bytes / 1e6


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.attention", description=__doc__)
    parser.add_argument("--lengths", default="512,1024,2048,4096")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    lengths = [int(length) for length in arguments.lengths.split(",")]
    result: dict[str, dict[str, list[float]]] = {}
    refused: dict[str, str] = {}
    for length in lengths:
        ready = {}
        for kernel in KERNELS:
            try:
                ready[kernel] = compiled_gradient(kernel, length)
            except ValueError as error:
                refused[kernel] = str(error)
        times: dict[str, list[float]] = {kernel: [] for kernel in ready}
        for number in range(arguments.rounds + 1):
            for kernel, (run, inputs, _) in ready.items():
                start = time.perf_counter()
                jax.block_until_ready(run(*inputs))
                if number:
                    times[kernel].append(time.perf_counter() - start)
        for kernel, (_, _, megabytes) in ready.items():
            milliseconds = statistics.median(times[kernel]) * 1e3
            result.setdefault(kernel, {})[str(length)] = [round(milliseconds, 2), round(megabytes, 1)]
    print(f"{'kernel':<14}{'seq_len':>8}{'ms':>10}{'peak MB':>10}   on {jax.devices()[0].device_kind}")
    for kernel, by_length in result.items():
        for length_text, (milliseconds, megabytes) in by_length.items():
            print(f"{kernel:<14}{length_text:>8}{milliseconds:>10.1f}{megabytes:>10.1f}")
    for kernel, reason in refused.items():
        print(f"{kernel:<14} not here: {reason}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

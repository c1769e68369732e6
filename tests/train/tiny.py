"""A tiny model, batches and steps that the tests of train/ share."""

import functools
import json
from pathlib import Path

import jax
import numpy as np

from data.build import DataConfig
from data.engine import LocalPool
from data.heldout import HeldOut
from data.loader import LoaderConfig
from data.sources.jsonl import JsonlSource
from data.tokenizer_config import TokenizerConfig
from models.config import Attention, Embedding, Execution, ModelConfig, RMSNorm
from models.sharding import MeshConfig, batch_sharding, make_mesh
from tests.data.token_data import stdlib_documents
from train.checkpoint import CheckpointConfig
from train.config import Config
from train.evaluation import EvaluationConfig
from train.loss import next_token_objective
from train.metrics import read_metrics
from train.optimizer import AdamW, Muon, WarmupCosine, WarmupStableDecay, make_optimizer, make_schedule
from train.state import abstract_state, create_state, describe_model, make_params, new_state, shardings_of
from train.step import TrainConfig, make_train_step

VOCAB = 64


def tiny_model(**changes) -> ModelConfig:
    """Two layers of eight heads: small, and divisible by every mesh of eight devices."""
    sizes = {"vocab_size": VOCAB, "num_layers": 2, "embed_dim": 32, "num_heads": 8, "num_kv_heads": 8}
    parts = {
        "head_dim": 4,
        "mlp_dim": 48,
        "attention": Attention(qk_norm=RMSNorm(scale=False)),
        "embedding": Embedding(tied=True, norm=RMSNorm()),
        "execution": Execution(scan_unroll=1),
        "dtype": "float32",
    }
    return ModelConfig(**(sizes | parts | changes))


def random_batch(seed: int, rows: int = 8, seq_len: int = 16) -> dict[str, np.ndarray]:
    """Two packed documents and padding in every row, with uneven loss weights."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (rows, seq_len + 1)).astype(np.int32)
    cut = rng.integers(3, seq_len - 4, rows)[:, None]
    place = np.arange(seq_len)[None, :]
    segment_ids = np.where(place < cut, 1, np.where(place < seq_len - 2, 2, 0)).astype(np.int32)
    weights = rng.uniform(0.1, 3.0, (rows, seq_len)) * (segment_ids > 0) * (rng.random((rows, 1)) < 0.8)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segment_ids,
        "positions": np.where(segment_ids == 2, place - cut, place).astype(np.int32) * (segment_ids > 0),
        "loss_weights": weights.astype(np.float32),
    }


class Trainer:
    """A step with its state on a mesh; `run(batch)` gives that step's metrics."""

    def __init__(
        self,
        mesh: MeshConfig | None = None,
        *,
        model: ModelConfig | None = None,
        optimizer: AdamW | Muon | None = None,
        objective=None,
        compiled: bool = True,
        **train,
    ):
        self.mesh = make_mesh(mesh or MeshConfig())
        model = model or tiny_model()
        config = TrainConfig(**({"num_steps": 5} | train))
        with jax.set_mesh(self.mesh):
            self.graphdef, self.axes, placements = describe_model(model, self.mesh)
            tx = make_optimizer(optimizer or AdamW(learning_rate=1e-2), self.axes)
            with_ema = config.ema_decay is not None
            create = lambda: new_state(make_params(model, 0), tx, with_ema=with_ema)  # noqa: E731
            self.abstract = abstract_state(create, placements, self.mesh)
            self.state = create_state(create, self.abstract) if compiled else None
        self.step = make_train_step(
            objective or functools.partial(next_token_objective, z_loss=config.z_loss, vocab_chunk=config.vocab_chunk),
            self.graphdef,
            tx,
            make_schedule(WarmupCosine(warmup_steps=2), config.num_steps),
            config,
            shardings=shardings_of(self.abstract),
            batch_sharding=batch_sharding(self.mesh),
        )

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, float]:
        """One step; the metrics as floats."""
        with jax.set_mesh(self.mesh):
            placed = {name: jax.device_put(array, batch_sharding(self.mesh)) for name, array in batch.items()}
            self.state, metrics = self.step(self.state, placed)
        return {name: float(value) for name, value in metrics.items()}


def run_config(folder: Path, **changes) -> Config:
    """A whole run on a small dataset of real text in `folder` (made by `write_corpus`): seconds on one core."""
    sections = {
        "name": "tiny",
        "run_dir": str(folder / "run"),
        "data": DataConfig(
            path=str(folder / "dataset"),
            sources=tuple(
                JsonlSource(name=name, paths=(str(folder / f"{name}.jsonl"),), meta_fields=("group",))
                for name in ("prose", "code")
            ),
            stages=(HeldOut(fraction=0.1),),
            tokenizer=TokenizerConfig(vocab_size=600, sample_bytes=100_000, num_threads=1),
            engine=LocalPool(workers=1),
        ),
        "loader": LoaderConfig(seq_len=64, global_batch_size=4),
        "model": tiny_model(vocab_size=600),
        "optimizer": Muon(),
        "schedule": WarmupStableDecay(warmup_steps=2, decay_fraction=1.0),
        "train": train_config(compilation_cache=str(folder / "cache")),
        "checkpoint": CheckpointConfig(every_steps=4),
        "evaluation": EvaluationConfig(
            every_steps=6, max_bytes=4000, max_final_bytes=8000, prompts=("def ",), sample_tokens=4
        ),
    }
    return Config(**(sections | changes))


def train_config(**changes) -> TrainConfig:
    """Twelve steps with all that a run can carry along; the same compiled step in every test that uses it."""
    return TrainConfig(**({"num_steps": 12, "log_every": 1, "ema_decay": 0.5, "tensorboard": False} | changes))


def write_corpus(folder: Path) -> None:
    """prose.jsonl and code.jsonl: docstrings and files of a few modules of the standard library."""
    for source in ("prose", "code"):
        with (folder / f"{source}.jsonl").open("w") as file:
            for document in stdlib_documents(max_files=25):
                if document.source == source:
                    group = document.id.split("/")[1]
                    file.write(json.dumps({"text": document.text[:3000], "group": group}) + "\n")


def losses(run_dir: Path) -> dict[int, float]:
    """Loss by step; a step that is written twice is an error."""
    lines = [line for line in read_metrics(run_dir) if "loss" in line]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line["loss"] for line in lines}

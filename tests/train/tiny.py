"""A tiny model, batches and steps that the tests of train/ share."""

import functools

import jax
import numpy as np

from models.config import Attention, Embedding, Execution, ModelConfig, RMSNorm
from models.sharding import MeshConfig, batch_sharding, make_mesh
from train.loss import next_token_objective
from train.optimizer import AdamW, Muon, WarmupCosine, make_optimizer, make_schedule
from train.state import abstract_state, create_state, describe_model, make_params, new_state, shardings_of
from train.step import TrainConfig, make_train_step

VOCAB = 64


def tiny_model(**changes) -> ModelConfig:
    """Two layers of eight heads: small, and divisible by every mesh of eight devices."""
    sizes = dict(vocab_size=VOCAB, num_layers=2, embed_dim=32, num_heads=8, num_kv_heads=8, head_dim=4, mlp_dim=48)
    parts = dict(
        attention=Attention(qk_norm=RMSNorm(scale=False)),
        embedding=Embedding(tied=True, norm=RMSNorm()),
        execution=Execution(scan_unroll=1),
        dtype="float32",
    )
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
            self.state = create_state(create, self.abstract)
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

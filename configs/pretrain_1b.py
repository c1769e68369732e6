"""One billion parameters on a slice of 16 chips, from your own JSON Lines.

    python -m train.main --config configs/pretrain_1b.py --dry-run --compile v5e:4x4
    python -m train.main --config configs/pretrain_1b.py "data.sources.web.paths=('corpus/web/*.jsonl.zst',)"

For another machine, `--dry-run --auto-fit v5p:2x2x2` says mesh, micro-batch and rematerialisation; launch/main.py
starts it on a pod, Slurm or Kubernetes.
"""

from dataclasses import replace

from configs.pretrain_8b import get_config as get_8b
from configs.pretrain_8b import get_data
from models.config import Embedding, ModelConfig
from models.sharding import MeshConfig
from train.config import Config
from train.optimizer import AdamW


def get_config() -> Config:
    """20 layers of width 2048, tied embeddings, half a million tokens a step."""
    base = get_8b()
    vocab_size = 32_768
    return replace(
        base,
        name="pretrain_1b",
        run_dir="runs/pretrain_1b",
        data=replace(get_data(vocab_size), path="datasets/web_32k"),
        loader=replace(base.loader, global_batch_size=128),
        model=ModelConfig(
            vocab_size=vocab_size,
            num_layers=20,
            embed_dim=2048,
            num_heads=16,
            num_kv_heads=8,
            head_dim=128,
            mlp_dim=6144,
            norm=base.model.norm,
            embedding=Embedding(tied=True),
            pattern=base.model.pattern,
            execution=base.model.execution,
        ),
        mesh=MeshConfig(fsdp=16),
        optimizer=AdamW(learning_rate=6e-4),
        train=replace(base.train, num_steps=100_000, vocab_chunk=8192),
    )

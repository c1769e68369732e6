"""Eight billion parameters (the shape of Llama 3 8B) on a pod of 256 chips, from your own JSON Lines.

    python -m train.main --config configs/pretrain_8b.py --dry-run
    python -m train.main --config configs/pretrain_8b.py "data.sources.web.paths=('corpus/web/*.jsonl.zst',)"

A global batch of 4 million tokens at sequence length 4096. The dry run prints parameters, memory by kind and FLOP per
token for the mesh below; another pod is `mesh.fsdp=64 loader.global_batch_size=256`.
"""

from data.build import DataConfig
from data.clean.recipes import web_en
from data.clean.stage import cleaning
from data.dedup.decontaminate import Decontaminate
from data.dedup.exact import ExactDedup
from data.dedup.near import NearDedup
from data.heldout import HeldOut
from data.loader import LoaderConfig
from data.sources.jsonl import JsonlSource
from data.tokenizer_config import TokenizerConfig
from models.config import Block, Embedding, Execution, ModelConfig, RMSNorm, Rotary
from models.sharding import MeshConfig
from train.checkpoint import CheckpointConfig
from train.config import Config
from train.evaluation import EvaluationConfig
from train.optimizer import AdamW, WarmupCosine
from train.step import TrainConfig


def get_data(vocab_size: int) -> DataConfig:
    """Web text from JSON Lines: English quality filters, exact and near dedup, a held-out side by URL host."""
    return DataConfig(
        path="datasets/web",
        sources=(JsonlSource(name="web", paths=("corpus/web/*.jsonl.zst",), meta_fields=("url",)),),
        stages=(
            *cleaning(recipes=(("web", web_en()),)),
            ExactDedup(),
            NearDedup(),
            HeldOut(fraction=0.0005),
            Decontaminate(),
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=vocab_size, sample_bytes=2_000_000_000, num_threads=32),
    )


def get_config() -> Config:
    """fsdp over 256 chips, 4 rows of 4096 tokens on each, layers rematerialised."""
    return Config(
        name="pretrain_8b",
        run_dir="runs/pretrain_8b",
        data=get_data(vocab_size=128_256),
        loader=LoaderConfig(seq_len=4096, global_batch_size=1024, packing="first_fit", seed=0),
        model=ModelConfig(
            vocab_size=128_256,
            num_layers=32,
            embed_dim=4096,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            mlp_dim=14_336,
            norm=RMSNorm(eps=1e-5),
            embedding=Embedding(tied=False),
            pattern=(Block(rotary=Rotary(theta=500_000.0)),),
            execution=Execution(remat="full"),
        ),
        mesh=MeshConfig(fsdp=256),
        optimizer=AdamW(learning_rate=3e-4, b2=0.95, weight_decay=0.1),
        schedule=WarmupCosine(warmup_steps=2000),
        train=TrainConfig(num_steps=240_000, vocab_chunk=16_032, z_loss=1e-4, log_every=10),
        checkpoint=CheckpointConfig(every_steps=1000, keep=3),
        evaluation=EvaluationConfig(every_steps=5000, max_bytes=16 << 20),
    )

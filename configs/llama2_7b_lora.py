"""Llama-2-7B adapted to your own documents with LoRA on q and v (rank 8), on eight accelerators.

    python -m train.main --config configs/llama2_7b_lora.py --dry-run
    python -m train.main --config configs/llama2_7b_lora.py init_from=DIR data.tokenizer.location=DIR

The dry run needs no accelerator and no weights; it prints `trainable params: 4,194,304 || all params: 6,742,609,920 ||
trainable%: 0.0622`, shardings and memory by kind. DIR is a Hugging Face folder of the weights, whose licence asks you
to fetch them yourself. The base rests in bfloat16, adapters and their moments in float32.
"""

from data.build import DataConfig
from data.heldout import HeldOut
from data.loader import LoaderConfig
from data.sources.jsonl import JsonlSource
from models.checkpoints.load import CheckpointTokenizer
from models.config import Block, Embedding, Execution, ModelConfig, RMSNorm, Rotary
from models.lora import LoRA
from models.sharding import MeshConfig
from train.checkpoint import CheckpointConfig
from train.config import Config
from train.evaluation import EvaluationConfig
from train.optimizer import AdamW, WarmupCosine
from train.step import TrainConfig

CHECKPOINT = "hf:meta-llama/Llama-2-7b-hf"


def get_model() -> ModelConfig:
    """Llama 2 7B (Touvron et al. 2023, arXiv:2307.09288)."""
    return ModelConfig(
        vocab_size=32_000,
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11_008,
        norm=RMSNorm(eps=1e-5),
        embedding=Embedding(tied=False, max_positions=4096),
        pattern=(Block(rotary=Rotary(theta=10_000.0)),),
        param_dtype="bfloat16",
        execution=Execution(remat="full"),
    )


def get_config() -> Config:
    """The settings of the seed: rank 8, alpha 32, dropout 0.05, no biases; the base split over the eight."""
    return Config(
        name="llama2_7b_lora",
        run_dir="runs/llama2_7b_lora",
        init_from=CHECKPOINT,
        lora=LoRA(targets=("q", "v"), rank=8, alpha=32.0, dropout=0.05),
        data=DataConfig(
            path="datasets/llama2_domain",
            sources=(JsonlSource(name="domain", paths=("corpus/domain/*.jsonl",)),),
            stages=(HeldOut(fraction=0.01),),
            tokenizer=CheckpointTokenizer(location=CHECKPOINT),
        ),
        loader=LoaderConfig(seq_len=4096, global_batch_size=32, packing="first_fit", seed=0),
        model=get_model(),
        mesh=MeshConfig(fsdp=8),
        optimizer=AdamW(learning_rate=2e-4, b2=0.999, weight_decay=0.0),
        schedule=WarmupCosine(warmup_steps=30),
        train=TrainConfig(num_steps=1000, vocab_chunk=8000),
        checkpoint=CheckpointConfig(every_steps=100, keep=2),
        evaluation=EvaluationConfig(every_steps=100, max_bytes=1 << 20),
    )

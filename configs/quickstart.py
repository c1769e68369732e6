"""Raw text to a trained, sampled language model with one command, on two CPU cores.

    python -m train.main --config configs/quickstart.py

Reads the docstrings and the source code of the packages in requirements.txt and of Python itself, and trains a
transformer of one million parameters on both.

Cost, measured on two shared x86-64 cores with Python 3.11 and nothing cached: 332 seconds, 24 of them for the
dataset. Result: held-out bits per byte 1.701 for code and 2.071 for prose, 1.855 over both; gzip -9 of each document
alone needs 2.016, 4.663 and 3.116, xz -9 of all in one stream 1.773, 2.507 and 1.914.
"""

from data.build import DataConfig
from data.clean.recipes import code, prose
from data.clean.stage import cleaning
from data.dedup.decontaminate import Decontaminate
from data.dedup.exact import ExactDedup
from data.dedup.near import NearDedup
from data.heldout import HeldOut
from data.loader import LoaderConfig
from data.sources.python_packages import PythonCode, PythonProse
from data.tokenizer_config import TokenizerConfig
from models.config import Attention, Embedding, ModelConfig, RMSNorm
from train.checkpoint import CheckpointConfig
from train.config import Config
from train.evaluation import EvaluationConfig
from train.optimizer import Muon, WarmupStableDecay
from train.step import TrainConfig

PACKAGES = (  # all of them in requirements.txt, so that installing anything else changes nothing
    "datasketch",
    "flax",
    "grain",
    "jax",
    "langdetect",
    "matplotlib",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pyarrow",
    "sentencepiece",
    "tensorflow-datasets",
    "tokenizers",
    "trafilatura",
    "transformers",
)


def get_data() -> DataConfig:
    """The corpus: prose and code that every machine has."""
    return DataConfig(
        path="datasets/quickstart",
        sources=(
            PythonProse(packages=PACKAGES, max_bytes=12_000_000, max_group_bytes=400_000),
            PythonCode(packages=PACKAGES, max_bytes=12_000_000, max_group_bytes=400_000),
        ),
        stages=(
            *cleaning(recipes=(("prose", prose()), ("code", code()))),
            ExactDedup(),
            NearDedup(),
            HeldOut(fraction=0.05, seed=28),  # ast, difflib, enum, pdb, pickle, shutil and a few more
            Decontaminate(),
        ),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=2048, sample_bytes=4_000_000),
    )


def get_config() -> Config:
    """One million parameters, Muon, 1.2 million tokens; the recipe is small and has many steps on purpose."""
    return Config(
        name="quickstart",
        run_dir="runs/quickstart",
        data=get_data(),
        loader=LoaderConfig(seq_len=256, global_batch_size=4, weights=(("prose", 1.0), ("code", 1.0))),
        model=ModelConfig(
            vocab_size=2048,
            num_layers=4,
            embed_dim=128,
            num_heads=2,
            num_kv_heads=2,
            head_dim=64,
            mlp_dim=352,
            attention=Attention(qk_norm=RMSNorm(scale=False)),
            embedding=Embedding(tied=True, norm=RMSNorm()),
            dtype="float32",  # a CPU has no faster bfloat16
        ),
        optimizer=Muon(learning_rate=2e-2, adam_learning_rate=2e-2, consistent_rms=0.2),
        schedule=WarmupStableDecay(warmup_steps=40, decay_fraction=1.0),
        train=TrainConfig(num_steps=1200),
        checkpoint=CheckpointConfig(every_steps=200, keep=2),
        evaluation=EvaluationConfig(
            every_steps=400,
            max_bytes=65_536,
            prompts=("Return the ", "def ", "import numpy"),
            sample_tokens=96,
        ),
    )

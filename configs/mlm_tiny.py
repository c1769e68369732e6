"""A small masked language model on the quickstart corpus: fills gaps in prose and code; minutes on two cores.

python -m train.main --config configs/mlm_tiny.py
python -m train.masked_scores --run runs/mlm_tiny

Cost and result: 1,000 steps take about ten minutes on two cores (2,500 to 4,000 tokens/s). Then a hidden token of the
held-out documents costs 5.84 nats and 10.5 % are right, where a unigram model has 6.47 nats and 2.2 %.
"""

from dataclasses import replace

from configs.quickstart import get_config as get_quickstart
from data.loader import LoaderConfig
from models.encoder import EncoderConfig
from train.config import Config
from train.evaluation import EvaluationConfig
from train.masked import MaskedLM
from train.optimizer import AdamW, WarmupCosine
from train.step import TrainConfig

TOKENS = 2048  # pieces of the quickstart's tokenizer; the mask is one more


def get_config() -> Config:
    """A BERT of 1.1 million parameters. Code is read too, but only prose is augmented with it."""
    return replace(
        get_quickstart(),
        name="mlm_tiny",
        run_dir="runs/mlm_tiny",
        loader=LoaderConfig(seq_len=128, global_batch_size=16, weights=(("prose", 2.0), ("code", 1.0))),
        model=EncoderConfig(
            vocab_size=TOKENS + 1,
            mask_id=TOKENS,
            num_layers=4,
            embed_dim=128,
            num_heads=4,
            mlp_dim=512,
            max_positions=128,
            num_types=1,
        ),
        objective=MaskedLM(),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=0.01),
        schedule=WarmupCosine(warmup_steps=100),
        train=TrainConfig(num_steps=1000),
        evaluation=EvaluationConfig(every_steps=500, max_bytes=65_536, prompts=()),
    )

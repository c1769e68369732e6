"""Code: Git repositories by language with their licences, and the questions and answers of a Stack Exchange dump.

    python -m train.main --config configs/source_code.py

Reads this repository itself; `repositories` takes folders and URLs. SLUICE_REAL_DATA (default: inputs) names a folder
with stackexchange/*Posts.xml.

Cost of the dataset (`python -m data.main`), measured on two x86-64 cores with other work on both: 16 seconds. Result:
457 files (3.0 MB, 1,092,531 tokens) of this repository as it was then, and 225 questions with their answers (0.4 MB), 8
of them held out; a repository is one group, so its files stay on one side. With the training of 200 steps: 3 minutes
5 seconds.
"""

import os
from dataclasses import replace

from configs import quickstart
from data.clean.recipes import code, prose
from data.clean.stage import cleaning
from data.sources.git_repository import GitSource
from data.sources.stack_exchange import StackExchangeSource
from train.config import Config

INPUTS = os.environ.get("SLUICE_REAL_DATA", "inputs")


def get_config() -> Config:
    """The quickstart's model and recipe on code and on answers about coffee."""
    base = quickstart.get_config()
    sources = (
        GitSource(name="git", repositories=(".",), languages=("Python", "Markdown")),
        StackExchangeSource(name="answers", paths=(f"{INPUTS}/stackexchange",), site="coffee.stackexchange.com"),
    )
    stages = (*cleaning(recipes=(("git", code()), ("answers", prose()))), *base.data.stages[-4:])
    return replace(
        base,
        name="source_code",
        run_dir="runs/source_code",
        data=replace(base.data, path="datasets/source_code", sources=sources, stages=stages),
        loader=replace(base.loader, weights=()),
        train=replace(base.train, num_steps=200),
    )

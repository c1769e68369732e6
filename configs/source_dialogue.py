"""Dialogue: Reddit threads, forum topics and mailing lists as text with speaker turns.

    python -m train.main --config configs/source_dialogue.py

SLUICE_REAL_DATA (default: inputs) names a folder with reddit/ (RS_*.zst and RC_*.zst), discourse/ (topics as JSON) and
mbox/. `form="messages"` on any of them adds chat messages for fine-tuning to the meta.
"""

import os
from dataclasses import replace

from configs import quickstart
from data.clean.recipes import prose
from data.clean.stage import cleaning
from data.sources.forums import DiscourseSource, MboxSource
from data.sources.reddit import RedditSource
from train.config import Config

INPUTS = os.environ.get("SLUICE_REAL_DATA", "inputs")


def get_config() -> Config:
    """The quickstart's model and recipe on conversations of at least two turns."""
    base = quickstart.get_config()
    sources = (
        RedditSource(name="reddit", paths=(f"{INPUTS}/reddit",), min_score=1, min_turns=2),
        DiscourseSource(name="forum", paths=(f"{INPUTS}/discourse",)),
        MboxSource(name="lists", paths=(f"{INPUTS}/mbox",)),
    )
    stages = (*cleaning(default=prose()), *base.data.stages[-4:])
    data = replace(base.data, path="datasets/source_dialogue", sources=sources, stages=stages)
    return replace(base, name="source_dialogue", run_dir="runs/source_dialogue", data=data)

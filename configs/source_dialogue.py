"""Dialogue: questions with their answers as text with turns; threads, topics and mailing lists the same way.

    python -m train.main --config configs/source_dialogue.py

SLUICE_REAL_DATA (default: inputs) names a folder with stackexchange/ (a Posts.xml of a Stack Exchange dump). Further
dialogue goes into `sources` the same way:

    RedditSource(name="reddit", paths=("RS_2023-01.zst", "RC_2023-01.zst"), min_score=1, min_turns=2)
    TwitterSource(name="tweets", paths=("stream-2021-06/*.json.bz2", "archive/tweets.js"))
    DiscourseSource(name="forum", paths=("topics/",))
    MboxSource(name="lists", paths=("2024-*.mbox.gz",))
    ForumPageSource(name="phpbb", paths=("saved/",))

`form="messages"` on any of them puts the same conversation into meta as chat messages; the stage
`data.chat_stage.Chats` then renders them in a model's template, as configs/finetune_smollm2_chat.py does.

Cost of the dataset (`python -m data.main`), measured on two x86-64 cores with other work on both: 10 seconds. Result on
the 592 rows of the coffee dump: 212 questions with their answers (0.4 MB, 127,478 tokens), 7 of them held out; dropped:
40 tag wikis, 13 without an answer. With the training of 200 steps: 3 minutes 28 seconds.
"""

import os
from dataclasses import replace

from configs import quickstart
from data.clean.recipes import prose
from data.clean.stage import cleaning
from data.sources.stack_exchange import StackExchangeSource
from train.config import Config

INPUTS = os.environ.get("SLUICE_REAL_DATA", "inputs")


def get_config() -> Config:
    """The quickstart's model and recipe on questions that were answered at least once."""
    base = quickstart.get_config()
    sources = (
        StackExchangeSource(
            name="answers", paths=(f"{INPUTS}/stackexchange",), site="coffee.stackexchange.com", min_answers=1
        ),
    )
    stages = (*cleaning(default=prose()), *base.data.stages[-4:])
    return replace(
        base,
        name="source_dialogue",
        run_dir="runs/source_dialogue",
        data=replace(base.data, path="datasets/source_dialogue", sources=sources, stages=stages),
        loader=replace(base.loader, weights=()),
        train=replace(base.train, num_steps=200),
    )

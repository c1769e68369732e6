"""Books: Project Gutenberg texts without header and licence tail, and EPUB files.

    python -m train.main --config configs/source_books.py

SLUICE_REAL_DATA (default: inputs) names a folder with gutenberg/ (.txt as gutenberg.org has them); add
`EpubSource(name="epub", paths=(...,))` for EPUB books of your own.

Cost of the dataset (`python -m data.main`), measured on two x86-64 cores with other work on both: 28 seconds. Result:
one book (0.1 MB, 56,797 tokens) and 8,832 docstrings (5.0 MB), 163 of them held out. With the training of 200 steps: 1
minute 29 seconds, and 2.46 bits per byte of held-out prose, where gzip -9 of all of it in one stream needs 2.67.
"""

import os
from dataclasses import replace

from configs import quickstart
from data.clean.recipes import prose
from data.clean.stage import cleaning
from data.sources.gutenberg import GutenbergSource
from train.config import Config

INPUTS = os.environ.get("SLUICE_REAL_DATA", "inputs")


def get_config() -> Config:
    """The quickstart's model and recipe on books, with the quickstart's prose beside them."""
    base = quickstart.get_config()
    sources = (
        GutenbergSource(name="gutenberg", paths=(f"{INPUTS}/gutenberg",)),
        base.data.sources[0],  # the prose of installed packages: one book alone leaves nothing to hold out
    )
    stages = (*cleaning(default=prose()), *base.data.stages[-4:])
    return replace(
        base,
        name="source_books",
        run_dir="runs/source_books",
        data=replace(base.data, path="datasets/source_books", sources=sources, stages=stages),
        loader=replace(base.loader, weights=()),
        train=replace(base.train, num_steps=200),
    )

"""Papers: arXiv LaTeX with OAI metadata, abstracts, JATS articles and PubMed records.

    python -m train.main --config configs/source_papers.py

SLUICE_REAL_DATA (default: inputs) names a folder with arxiv/ (.tex, tars of arXiv, OAI-PMH .xml) and jats/.

Cost of the dataset (`python -m data.main`), measured on two x86-64 cores with other work on both: 10 seconds. Result:
one LaTeX paper, three abstracts, three articles and one PubMed record (0.1 MB), nothing dropped; one article and one
abstract are held out. With the training of 200 steps: 5 minutes 33 seconds, and so little text teaches a model nothing
that holds: 3.55 bits per byte of what is held out, where gzip needs 2.64.
"""

import os
from dataclasses import replace

from configs import quickstart
from data.clean.recipes import prose
from data.clean.stage import cleaning
from data.heldout import HeldOut
from data.sources.arxiv import ArxivSource
from data.sources.jats import JatsSource
from data.sources.oai import OaiSource
from data.sources.pubmed import PubmedSource
from train.config import Config

INPUTS = os.environ.get("SLUICE_REAL_DATA", "inputs")


def get_config() -> Config:
    """The quickstart's model and recipe on papers."""
    base = quickstart.get_config()
    oai = (f"{INPUTS}/arxiv/*.xml",)
    sources = (
        ArxivSource(name="arxiv", paths=(f"{INPUTS}/arxiv/*.tex",), metadata=oai),
        OaiSource(name="abstracts", paths=oai),
        JatsSource(name="pmc", paths=(f"{INPUTS}/jats/*.nxml",)),
        PubmedSource(name="pubmed", paths=(f"{INPUTS}/jats/pubmed*.xml",)),
    )
    heldout = HeldOut(fraction=0.2, seed=2)  # one article and one abstract
    stages = (*cleaning(default=prose()), *base.data.stages[-4:-2], heldout, base.data.stages[-1])
    return replace(
        base,
        name="source_papers",
        run_dir="runs/source_papers",
        data=replace(base.data, path="datasets/source_papers", sources=sources, stages=stages),
        loader=replace(base.loader, weights=()),
        train=replace(base.train, num_steps=200),
    )

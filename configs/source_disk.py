"""What people already have on disk and on hubs: here Parquet and plain text, read as they are.

    python -m train.main --config configs/quickstart.py           makes the Parquet files
    python -m train.main --config configs/source_disk.py

SLUICE_REAL_DATA (default: inputs) names a folder with text/ (plain text files). The other readers go into `sources`
the same way; every path may be a file, a folder or a glob, here or at gs://, s3:// (with gcsfs, s3fs) or https://:

    JsonlSource(name="web", paths=("dumps/*.jsonl.zst",), text_field="content", meta_fields=("url",))
    CsvSource(name="reviews", paths=("reviews.csv.gz",), text_field="body")
    HtmlFolder(name="pages", paths=("saved/",))
    MediaWikiSource(name="wiki", paths=("eowiki-pages-articles.xml.bz2",), language="eo", licence="CC-BY-SA-4.0")
    ArrayRecordSource(name="records", paths=("x.array_record-*",), record="example")
    TfdsSource(name="imdb", path="~/tensorflow_datasets/imdb_reviews/plain_text/1.0.0")
    HfDatasetSource(name="fineweb", path="HuggingFaceFW/fineweb", config="sample-10BT", revision="a commit hash")

Cost of the dataset (`python -m data.main`), measured on two x86-64 cores with other work on both: 90 seconds where the
quickstart's is there. Result: 9,125 of its documents (9.9 MB), 437 of them held out, and WikiText-2's validation part
as one text (1.1 MB, 481,573 tokens); 648 of the quickstart's repeat what is held out, and are dropped for it.
With the training of 200 steps, the dataset in 39 seconds of it: 2 minutes 40 seconds, and 2.47 bits per byte of the
documents held out, where gzip -9 of all of them in one stream needs 2.53.
"""

import os
from dataclasses import replace

from configs import quickstart
from data.clean.recipes import books, prose
from data.clean.stage import cleaning
from data.heldout import HeldOut
from data.sources.parquet import ParquetSource
from data.sources.text_files import TextFolder
from train.config import Config

INPUTS = os.environ.get("SLUICE_REAL_DATA", "inputs")


def get_config() -> Config:
    """The quickstart's model and recipe on the documents of the quickstart, and on WikiText beside them."""
    base = quickstart.get_config()
    sources = (
        ParquetSource(name="parquet", paths=("datasets/quickstart/documents",)),
        TextFolder(name="text", paths=(f"{INPUTS}/text",)),
    )
    cleaned = cleaning(recipes=(("text", books()),), default=prose())  # WikiText is one file as long as a book
    stages = (*cleaned, *base.data.stages[-4:-2], HeldOut(fraction=0.05, seed=4), base.data.stages[-1])
    return replace(
        base,
        name="source_disk",
        run_dir="runs/source_disk",
        data=replace(base.data, path="datasets/source_disk", sources=sources, stages=stages),
        loader=replace(base.loader, weights=()),
        train=replace(base.train, num_steps=200),
    )

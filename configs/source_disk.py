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
"""

import os
from dataclasses import replace

from configs import quickstart
from data.clean.recipes import prose
from data.clean.stage import cleaning
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
    stages = (*cleaning(default=prose()), *base.data.stages[-4:])
    return replace(
        base,
        name="source_disk",
        run_dir="runs/source_disk",
        data=replace(base.data, path="datasets/source_disk", sources=sources, stages=stages),
        loader=replace(base.loader, weights=()),
        train=replace(base.train, num_steps=200),
    )

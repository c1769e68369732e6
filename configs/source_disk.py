"""What people already have: JSON Lines, Parquet, and a dataset that TFDS prepared, read without TensorFlow.

    python -m train.main --config configs/source_disk.py

SLUICE_REAL_DATA (default: inputs) names a folder with jsonl/, parquet/ and tfds/ (a version folder such as NAME/1.0.0);
paths may also be gs://, s3:// or https://.
"""

import os
from dataclasses import replace

from configs import quickstart
from data.clean.recipes import prose
from data.clean.stage import cleaning
from data.sources.array_records import TfdsSource
from data.sources.jsonl import JsonlSource
from data.sources.parquet import ParquetSource
from train.config import Config

INPUTS = os.environ.get("SLUICE_REAL_DATA", "inputs")


def get_config() -> Config:
    """The quickstart's model and recipe on tables of text."""
    base = quickstart.get_config()
    sources = (
        JsonlSource(name="jsonl", paths=(f"{INPUTS}/jsonl",), meta_fields=("url",)),
        ParquetSource(name="parquet", paths=(f"{INPUTS}/parquet",)),
        TfdsSource(name="tfds", path=f"{INPUTS}/tfds"),
    )
    stages = (*cleaning(default=prose()), *base.data.stages[-4:])
    data = replace(base.data, path="datasets/source_disk", sources=sources, stages=stages)
    return replace(base, name="source_disk", run_dir="runs/source_disk", data=data)

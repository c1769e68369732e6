"""TFDS, Git, hubs and dumps: built, cleaned and trained on in one run by the normal command."""

from __future__ import annotations

import bz2
import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest
import zstandard

from data.clean.recipes import prose
from data.clean.stage import cleaning
from data.heldout import HeldOut
from data.manifest import read_manifest
from data.sources.array_records import ArrayRecordSource, TfdsSource
from data.sources.csv_files import CsvSource
from data.sources.forums import DiscourseSource, MboxSource
from data.sources.jsonl import JsonlSource
from data.sources.mediawiki import MediaWikiSource
from data.sources.parquet import ParquetSource
from data.sources.reddit import RedditSource
from data.sources.stack_exchange import StackExchangeSource
from data.sources.twitter import TwitterSource
from tests.data.sources.test_disk_sources import prepare_tfds
from tests.data.token_data import stdlib_documents
from tests.train.tiny import losses, run_config
from train.config import Config

ROOT = Path(__file__).resolve().parents[3]
KINDS = {
    "tfds": TfdsSource, "jsonl": JsonlSource, "csv": CsvSource, "parquet": ParquetSource, "wiki": MediaWikiSource,
    "records": ArrayRecordSource, "reddit": RedditSource, "twitter": TwitterSource, "forum": DiscourseSource,
    "mail": MboxSource, "answers": StackExchangeSource,
}  # fmt: skip


def config_of(folder: Path) -> Config:
    """What the config file of the run returns."""
    base = run_config(folder)
    sources = tuple(
        kind(name=name, path=(folder / "tfds.path").read_text())
        if kind is TfdsSource
        else kind(name=name, paths=(str(folder / name),))
        for name, kind in KINDS.items()
    )
    stages = (*cleaning(default=prose()), HeldOut(fraction=0.25))
    data = replace(base.data, path=str(folder / "dataset"), sources=sources, stages=stages)
    return replace(base, data=data, train=replace(base.train, num_steps=3))


def write_inputs(folder: Path, texts: Sequence[str]) -> None:
    """The texts once in each format."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from array_record.python.array_record_module import ArrayRecordWriter

    def put(name: str, data: bytes) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    def lines(*rows: dict[str, Any]) -> bytes:
        return b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    (folder / "tfds.path").write_text(prepare_tfds(folder / "prepared", list(texts)))
    put("jsonl/x.jsonl", lines(*({"text": text} for text in texts)))
    (folder / "csv").mkdir()
    with (folder / "csv/x.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["text"], *([text] for text in texts)])
    (folder / "parquet").mkdir()
    pq.write_table(pa.table({"text": texts}), folder / "parquet/x.parquet")
    (folder / "records").mkdir()
    writer = ArrayRecordWriter(str(folder / "records/x.array_record"), "group_size:1")
    for text in texts:
        writer.write(json.dumps({"text": text}).encode())
    writer.close()
    page = "<page><title>P{0}</title><id>{0}</id><revision><text>{1}</text></revision></page>"
    put("wiki/x.xml.bz2", bz2.compress("".join(page.format(i, escape(t)) for i, t in enumerate(texts)).encode()))
    posts = [{"id": f"s{i}", "title": "Why?", "selftext": text, "author": "ann"} for i, text in enumerate(texts)]
    reply = {"author": "bob", "score": 2, "body": "Because it says so in the documentation of the module."}
    replies = [{**reply, "id": f"c{i}", "link_id": f"t3_s{i}", "parent_id": f"t3_s{i}"} for i in range(len(texts))]
    put("reddit/RS_2024-01.zst", zstandard.ZstdCompressor().compress(lines(*posts)))
    put("reddit/RC_2024-01.zst", zstandard.ZstdCompressor().compress(lines(*replies)))
    put("twitter/x.jsonl", lines(*({"id": str(i), "full_text": text} for i, text in enumerate(texts))))
    mail = "From a@b.example Mon Jan  1 10:00:00 2024\nFrom: a\nSubject: s{0}\nMessage-ID: <{0}@b>\n\n{1}\n\n"
    put("mail/x.mbox", "".join(mail.format(i, text) for i, text in enumerate(texts)).encode())
    row = '<row Id="{0}" PostTypeId="1" Title="Q" Body="{1}" />\n'
    body = "".join(
        row.format(i, escape(f"<p>{escape(text)}</p>").replace("\n", "&#xA;")) for i, text in enumerate(texts)
    )
    put("answers/Posts.xml", f"<posts>\n{body}</posts>\n".encode())
    for number, text in enumerate(texts):
        topic = {"id": number, "title": "T", "post_stream": {"posts": [{"username": "a", "cooked": escape(text)}]}}
        put(f"forum/{number}.json", json.dumps(topic).encode())


@pytest.mark.slow
def test_every_kind_of_source_is_read_cleaned_and_trained_on_by_one_command(tmp_path: Path) -> None:
    texts = [document.text[:2500] for document in stdlib_documents(max_files=40) if document.source == "prose"][:60]
    write_inputs(tmp_path, texts)
    (tmp_path / "all_config.py").write_text(
        "from pathlib import Path\nfrom tests.data.sources.test_sources_end_to_end import config_of\n"
        f"def get_config():\n    return config_of(Path({str(tmp_path)!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "train.main", "--config", "all_config.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stages = {stage["name"]: stage for stage in read_manifest(tmp_path / "dataset")["stages"]}
    for name in KINDS:
        counts = stages[f"read-{name}"]["counts"]
        assert counts["read"] == counts["kept"] == len(texts) and counts["dropped"] == 0, (name, counts)
        cleaned = stages["clean"]["sources"][name]
        assert cleaned["kept"] > len(texts) // 3 and cleaned["kept"] + cleaned["dropped"] == len(texts), (name, cleaned)
    found = losses(tmp_path / "run")
    assert list(found) == [1, 2, 3] and all(math.isfinite(loss) and loss < 20 for loss in found.values())
    assert "tensorflow" not in done.stderr.lower()

"""What readers of a dataset see of its dropped documents: all stages' drops in one folder, personal data replaced.

    output/PP-STAGE-NNNNN.parquet      PP: the stage's place in the build; shards without a drop are left out

Only here is anything replaced: the stages' own folders hold the documents as they came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from data.chat import CHAT_KEYS
from data.clean.pii import redact
from data.document import Dropped
from data.engine import Engine
from data.tables import count_rows, read_dropped, write_dropped

VERSION = 2
CODE_MODULES = ("data.dropped", "data.clean.pii", "data.clean.pii_numbers", "data.clean.pii_text")


def collect_dropped(stages: Sequence[tuple[str, Path]], output: Path, engine: Engine) -> int:
    """Write every dropped document of these stages, (name, folder) in order, to `output`; the number of documents."""
    tasks = [
        (path, f"{position:02d}-{name}-{path.name}")
        for position, (name, folder) in enumerate(stages)
        for path in sorted((folder / "dropped").glob("*.parquet"))
    ]
    return sum(engine.map_shards(partial(_redact_shard, output=output), tasks, label="dropped", documents=int))


def _redact_shard(task: tuple[Path, str], *, output: Path) -> int:
    path, name = task
    count = count_rows(path)
    if count and not (output / name).exists():
        write_dropped(output / name, _redacted(path))
    return count


def _redacted(path: Path) -> Iterator[Dropped]:
    for row in read_dropped(path):
        meta = {key: value for key, value in row.document.meta.items() if key not in CHAT_KEYS}  # the text holds them
        document = replace(row.document, text=redact(row.document.text), meta=meta)
        yield Dropped(document, row.step, row.drop)

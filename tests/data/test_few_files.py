"""What is open at once does not grow with a dataset: runs, shards and plans of many files need few descriptors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.token_data import build, stdlib_documents, tree

RUNS, SOURCES, LIMIT = 200, 60, 160


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [replace(d, source=f"s{n % SOURCES:02d}") for n, d in enumerate(stdlib_documents(25))]
    return build(tmp_path_factory.mktemp("many"), documents, shards=RUNS)


def made(dataset: Path, limit: int) -> tuple[dict[str, bytes], str]:
    """The token shards and a hash of batches, made in a process of its own."""
    program = [sys.executable, "-m", "tests.data.few_files", str(dataset), str(limit)]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return tree(dataset / "tokens"), result.stdout


def test_few_open_files_are_enough_for_the_same_bytes_and_batches(dataset: Path) -> None:
    shards, batches = made(dataset, LIMIT)
    assert sum(name.endswith(".arrayrecord") for name in shards) > 4 * LIMIT
    assert (shards, batches) == made(dataset, 0)

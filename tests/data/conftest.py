"""A real Ray cluster of three nodes on this machine, and what the local engine writes: shared by several files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from data.build import build_dataset
from tests.data.build_cases import file_hashes
from tests.data.cluster_cases import NODE, ROOT, five_sources, small_quickstart


@pytest.fixture(scope="session")
def three_nodes() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cluster(three_nodes: Any) -> Any:
    """The cluster with all its nodes, whatever the test before this one took away."""
    while len(three_nodes.worker_nodes) < 2:
        three_nodes.add_node(**NODE)
    three_nodes.wait_for_nodes()
    return three_nodes


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the local engine writes."""
    return file_hashes(build_dataset(five_sources(tmp_path_factory.mktemp("local") / "dataset")))


@pytest.fixture(scope="session")
def expected_quickstart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the local engine writes of the quickstart."""
    return file_hashes(build_dataset(small_quickstart(tmp_path_factory.mktemp("local") / "dataset")))

"""A small dataset that the tests of whole runs share, and no mesh left behind by a run."""

import jax
import pytest

from data.build import build_dataset
from models.sharding import MeshConfig, make_mesh
from tests.train.tiny import run_config, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with the corpus, its built dataset, and a compilation cache."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    build_dataset(run_config(folder).data)
    return folder


@pytest.fixture
def own_mesh():
    """What a run does to the ambient mesh ends with the test."""
    with jax.set_mesh(make_mesh(MeshConfig())):
        yield

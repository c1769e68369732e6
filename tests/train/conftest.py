"""A small dataset that the tests of whole runs share, and no mesh left behind by a run."""

import signal

import jax
import pytest

from data.build import build_dataset
from models.command import use_compile_cache
from models.sharding import MeshConfig, make_mesh
from tests.train.tiny import run_config, write_corpus


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """The runs of these tests share their programs: each is compiled once a session, as a run's own cache does."""
    use_compile_cache(str(tmp_path_factory.mktemp("compiled")))
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with the corpus and its built dataset."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    build_dataset(run_config(folder).data)
    return folder


@pytest.fixture
def own_mesh():
    """What a run does to the ambient mesh and to SIGTERM ends with the test."""
    handler = signal.getsignal(signal.SIGTERM)
    with jax.set_mesh(make_mesh(MeshConfig())):
        yield
    signal.signal(signal.SIGTERM, handler)

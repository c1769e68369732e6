"""What the sections of a config must agree on, found before a dataset is built: a build may take hours."""

import tempfile
from pathlib import Path

from data.build import DataConfig
from data.loader import LoaderConfig
from data.manifest import MANIFEST
from data.tokenizer import TokenizerConfig
from data.tokenizer_extend import TokenizerExtension
from data.weights import check_names
from models.extend import check_same_pieces
from train.config import Config


def check_mixture(data: DataConfig, loader: LoaderConfig) -> None:
    """Refuses (ValueError, one line) weights of sources that the dataset will not have.

    A dataset that is taken as it is (data.rebuild=False) may have others than the config: the loader checks it.
    """
    if data.rebuild:
        names = [source.name for source in data.sources]
        check_names(loader.weights, loader.changes, names, data.split_languages)


def check_tokenizer(config: Config) -> None:
    """Refuses (ValueError, one line) a ready tokenizer for the dataset whose ids mean something else in init_from.

    One that is trained on the dataset is known when it is built, as that of a dataset that is there: then
    `models.extend.load_extended` checks it, before the first step.
    """
    ready = config.data.tokenizer
    if isinstance(ready, TokenizerExtension):
        ready = ready.base
    if config.init_from is None or ready is None or isinstance(ready, TokenizerConfig):
        return
    if (Path(config.data.path) / MANIFEST).is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        ready.write(Path(folder))
        check_same_pieces(config.init_from, Path(folder))

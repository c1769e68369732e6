"""What the sections of a config must agree on, found before a dataset is built: a build may take hours."""

import tempfile
from dataclasses import replace
from pathlib import Path

from data.build import DataConfig
from data.loader import LoaderConfig
from data.manifest import MANIFEST
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_extend import TokenizerExtension
from data.weights import check_names
from models.checkpoints.load import checkpoint_config, matching_config
from models.checkpoints.location import resolve
from models.config import ModelConfig
from models.extend import check_same_pieces
from models.sharding import MeshConfig, abstract_mesh
from train.config import Config
from train.optimizer import make_optimizer
from train.state import describe_model


def check_mixture(data: DataConfig, loader: LoaderConfig) -> None:
    """Refuses (ValueError, one line) weights of sources that the dataset will not have.

    A dataset that is taken as it is (data.rebuild=False) may have others than the config: the loader checks it.
    """
    if data.rebuild:
        names = [source.name for source in data.sources]
        check_names(loader.weights, loader.changes, names, data.split_languages)


def check_tokenizer(config: Config) -> None:
    """Refuses (ValueError, one line) a tokenizer with more pieces than the model has rows, or that init_from was not
    trained with.

    Of a dataset that is there, and of a tokenizer that is trained on the dataset, this is found when they are read,
    before the first step: `train.loop.check_sizes`, `models.extend.load_extended`.
    """
    ready, rows = config.data.tokenizer, config.model.vocab_size
    if ready is None or not config.data.rebuild or (Path(config.data.path) / MANIFEST).is_file():
        return
    if isinstance(ready, TokenizerConfig):
        if ready.vocab_size > rows:
            raise ValueError(
                f"model.vocab_size={rows} is below data.tokenizer.vocab_size={ready.vocab_size}: set both alike"
            )
        return
    if config.init_from is not None:
        with tempfile.TemporaryDirectory() as folder:
            (ready.base if isinstance(ready, TokenizerExtension) else ready).write(Path(folder))
            check_same_pieces(config.init_from, Path(folder))


def check_tuning(config: Config) -> None:
    """Refuses (ValueError, one line) patterns, ranks and blocks that do not fit the model, settings of the optimizer
    and of the loss that nothing would use, and an init_from of another model. Makes no array and asks for no device.

    Where the dataset is there, init_from is looked at when its weights are read: a run that goes on may not need it.
    """
    _, axes, _ = describe_model(config.model, abstract_mesh(MeshConfig(), 1), config.tuning)
    make_optimizer(config.optimizer, axes)
    config.objective.make(config.train)
    built = not config.data.rebuild or (Path(config.data.path) / MANIFEST).is_file()
    if config.init_from is not None and isinstance(config.model, ModelConfig) and not built:
        where = resolve(config.init_from)
        rows = min(checkpoint_config(where).vocab_size, config.model.vocab_size)  # more are added later
        matching_config(where, replace(config.model, vocab_size=rows))

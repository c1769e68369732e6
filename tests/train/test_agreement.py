"""What a config's sections do not agree on is refused in one line, before a dataset is built or a step is made."""

import dataclasses
from pathlib import Path

import pytest
from flax import nnx

from data import main as data_command
from models.checkpoints.load import CheckpointTokenizer
from models.checkpoints.save import save_hf
from models.checkpoints.tokenizer import load_tokenizer_folder
from models.config import Attention, Embedding
from models.lora import LoRA
from models.quantize import NF4
from models.transformer import CausalLM
from tests.models.test_extend import letters
from tests.train.test_main import told
from tests.train.tiny import run_config, tiny_model
from train.agreement import check_mixture, check_tokenizer, check_tuning
from train.loop import train
from train.optimizer import AdamW

LLAMA = tiny_model(vocab_size=600, attention=Attention(), embedding=Embedding(tied=True))


@pytest.fixture
def other(tmp_path: Path) -> str:
    """A checkpoint with as many pieces as the dataset's tokenizer has, of another meaning."""
    save_hf(CausalLM(LLAMA, rngs=nnx.Rngs(3)), tmp_path / "other", tokenizer=letters(600))
    return str(tmp_path / "other")


def test_a_checkpoint_of_another_tokenizer_is_refused_before_the_first_step(corpus, other, tmp_path, own_mesh):
    config = run_config(corpus, model=LLAMA, init_from=other, run_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"no extension of the checkpoint's: id 0 is '.*' in the dataset and 'a' in"):
        train(config, corpus / "dataset")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_ready_tokenizer_of_another_checkpoint_is_refused_before_the_dataset_is_built(corpus, other, tmp_path):
    theirs = CheckpointTokenizer(location=str(tmp_path / "theirs"))
    save_hf(
        CausalLM(LLAMA, rngs=nnx.Rngs(3)),
        Path(theirs.location),
        tokenizer=load_tokenizer_folder(corpus / "dataset" / "tokenizer"),
    )
    config = run_config(corpus, model=LLAMA, init_from=other)
    data = dataclasses.replace(config.data, path=str(tmp_path / "unbuilt"), tokenizer=theirs)
    with pytest.raises(ValueError, match="is no extension of the checkpoint's") as caught:
        check_tokenizer(dataclasses.replace(config, data=data))
    assert "\n" not in str(caught.value)
    check_tokenizer(dataclasses.replace(config, data=data, init_from=theirs.location))
    check_tokenizer(dataclasses.replace(config, data=data, init_from=None))


def test_a_tokenizer_with_more_pieces_than_rows_is_refused_before_the_dataset_is_built(corpus, tmp_path):
    config = run_config(corpus, model=tiny_model(vocab_size=599))
    check_tokenizer(config)  # the dataset is there: the loop looks at it
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"model\.vocab_size=599 is below data\.tokenizer\.vocab_size=600: set both"):
        check_tokenizer(config)


def test_a_source_that_is_none_is_refused_by_both_commands_before_the_dataset_is_built(tmp_path, capsys, monkeypatch):
    wrong = [
        "--config",
        "configs/quickstart.py",
        "loader.weights=(('proes', 1.0), ('code', 1.0))",
        f"data.path={tmp_path / 'dataset'}",
    ]
    says = "error: loader.weights names source 'proes'; data.sources are prose, code\n"
    assert data_command.main(wrong) == 1
    assert capsys.readouterr().err == says
    assert told(monkeypatch, capsys, *wrong, f"run_dir={tmp_path / 'run'}") == (1, "", says)
    assert not list(tmp_path.iterdir())


def test_a_dataset_that_is_taken_as_it_is_may_have_other_sources(corpus):
    config = run_config(corpus)
    loader = dataclasses.replace(config.loader, weights=(("elsewhere", 1.0),))
    with pytest.raises(ValueError, match="names source 'elsewhere'"):
        check_mixture(config.data, loader)
    check_mixture(dataclasses.replace(config.data, rebuild=False), loader)


def test_a_tuning_that_does_not_fit_is_refused_before_the_dataset_is_built(corpus, other, tmp_path):
    config = run_config(corpus, model=LLAMA)
    unbuilt = dataclasses.replace(config.data, path=str(tmp_path / "unbuilt"))
    check_tuning(config)

    def refused(match, **changes):
        with pytest.raises(ValueError, match=match) as caught:
            check_tuning(dataclasses.replace(config, **changes))
        assert "\n" not in str(caught.value)

    refused("lora.targets: 'qq' matches nothing", lora=LoRA(targets=("qq",)))
    refused("lora.rank=999 is above a side", lora=LoRA(rank=999))
    refused("quantize.block=62 does not divide", lora=LoRA(), quantize=NF4(block=62))
    refused("freeze: 'nothing' matches nothing", train=dataclasses.replace(config.train, freeze=("nothing",)))
    refused("lora_b_ratio=16.0 finds no adapter", optimizer=AdamW(lora_b_ratio=16.0))
    refused(
        "is another model: num_layers", init_from=other, model=dataclasses.replace(LLAMA, num_layers=3), data=unbuilt
    )
    check_tuning(dataclasses.replace(config, init_from=other, data=unbuilt))
    check_tuning(
        dataclasses.replace(config, init_from=other, data=unbuilt, model=dataclasses.replace(LLAMA, vocab_size=700))
    )
    check_tuning(dataclasses.replace(config, init_from=str(tmp_path / "gone")))  # the dataset is there

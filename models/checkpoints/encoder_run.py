"""A run that trained an encoder, as a model and as a Hugging Face folder."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

from models.checkpoints.bert import save_bert
from models.checkpoints.run import load_any_run, read_run_json
from models.encoder import EncoderConfig, EncoderLM

MASK = "[MASK]"  # what the mask is called in the tokenizer of an exported run


def read_encoder_config(folder: Path) -> EncoderConfig:
    """The model section of RUN/config.json; ValueError where the run trained another kind of model."""
    found = read_run_json(folder)["model"]
    if found.get("type") != EncoderConfig.__name__:
        raise ValueError(f"{folder} trained a {found.get('type')}, no encoder: expected objective=MaskedLM()")
    known = {field.name for field in fields(EncoderConfig)}
    return EncoderConfig(**{name: value for name, value in found.items() if name in known})


def load_encoder_run(folder: Path) -> EncoderLM:
    """The model of the run's newest checkpoint."""
    model = load_any_run(folder, read_encoder_config(folder))
    assert isinstance(model, EncoderLM)
    return model


def export_encoder_run(folder: Path, out: Path) -> EncoderLM:
    """Write the run as a folder that transformers' AutoModelForMaskedLM and AutoTokenizer load; the model.

    The tokenizer gets the mask as one more token, with the id that the model was trained with.
    """
    from tokenizers import AddedToken, Tokenizer

    model = load_encoder_run(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    if model.config.mask_id < tokenizer.get_vocab_size():
        raise ValueError(
            f"{folder}: mask_id {model.config.mask_id} is a piece of its tokenizer of {tokenizer.get_vocab_size()}: "
            "train with mask_id = the tokenizer's size"
        )
    number = 0
    while tokenizer.get_vocab_size() < model.config.mask_id:
        tokenizer.add_special_tokens([AddedToken(f"<unused{number}>", special=True)])
        number += 1
    tokenizer.add_special_tokens([AddedToken(MASK, special=True, normalized=False)])
    save_bert(model, out)
    tokenizer.save(str(out / "tokenizer.json"))
    old = folder / "tokenizer" / "tokenizer_config.json"
    named = json.loads(old.read_text(encoding="utf-8")) if old.exists() else {}
    named |= {"mask_token": MASK, "tokenizer_class": "PreTrainedTokenizerFast"}
    named["split_special_tokens"] = False  # training reads "[MASK]" as text; who fills masks writes it into texts
    text = json.dumps(named, indent=2)
    (out / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    if (folder / "tokenizer" / "special_tokens_map.json").exists():
        shutil.copyfile(folder / "tokenizer" / "special_tokens_map.json", out / "special_tokens_map.json")
    return model

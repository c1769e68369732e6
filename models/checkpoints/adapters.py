"""Adapter folders of PEFT's over one checkpoint: which act is chosen row by row (models/adapters.py).

loaded = load_checkpoint("base", adapters={"chats": "runs/chats_peft", "style": "runs/style_peft"})
Scorer(loaded.model, loaded.tokenizer, adapter=loaded.adapter("base")).score(texts)
TextGenerator(Decoder(loaded.model), loaded.tokenizer, config, adapter=loaded.adapter("style")).generate(prompts)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from models.adapters import BASE, count_adapters, together
from models.checkpoints.fingerprint import checksums
from models.checkpoints.peft import load_peft, quantization_of
from models.checkpoints.peft_folder import adapter_quantization, check_base
from models.quantize import quantize_model
from models.transformer import CausalLM


def named_folders(values: Sequence[str]) -> dict[str, Path]:
    """NAME=DIR of a command line, in order; ValueError where one is not that, or a name is there twice."""
    folders: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not name or not equals or not folder:
            raise ValueError(f"--adapter {value}: expected NAME=DIR, a name of your own and a PEFT adapter folder")
        if name in folders or name == BASE:
            raise ValueError(f"--adapter {value}: the name {name!r} is taken; give each adapter one of its own")
        folders[name] = Path(folder)
    return folders


def with_adapters(model: CausalLM, folders: Mapping[str, str | Path]) -> CausalLM:
    """The base with the adapter of every folder, in order, quantised as they were trained on it.

    Errors: ValueError as of `load_peft`, and for what cannot share a base: adapters of different quantisations, or one
    that trained parameters of the base whole.
    """
    if count_adapters(model):
        raise ValueError("this checkpoint has adapters of its own: add others to the base that it was trained on")
    paths = {name: Path(folder) for name, folder in folders.items()}
    forms = {name: adapter_quantization(path) for name, path in paths.items()}
    first = next(iter(forms))
    if other := [name for name in forms if forms[name] != forms[first]]:
        raise ValueError(
            f"adapter {first!r} was trained on a base in {forms[first] or 'float'}, {other[0]!r} on one in "
            f"{forms[other[0]] or 'float'}: they cannot share one"
        )
    if (form := forms[first]) is not None and quantization_of(model) is None:
        sums = checksums(model)  # while its projections are float
        for path in paths.values():
            check_base(path, sums)
        model = quantize_model(model, form)
    loaded = []
    for name, path in paths.items():
        adapted, lora = load_peft(path, model)
        if lora.also_train or lora.bias != "none":
            whole = ", ".join(lora.also_train) or "biases"
            raise ValueError(
                f"adapter {name!r} changes the base itself ({whole} trained whole), which others share: merge it "
                "(python -m train.export --format hf)"
            )
        loaded.append((adapted, name))
    return together(loaded)

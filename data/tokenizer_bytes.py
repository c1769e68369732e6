"""Byte-level BPE, trained with `tokenizers`: every byte is a piece, so that no text needs an unknown one.

The text is first cut into words, numbers, marks and white space; no piece lies across a cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from data.tables import atomic_path, write_json
from data.tokenizer_words import split_pattern

BYTES = 256
BOS, EOS, PAD = "<s>", "</s>", "<pad>"  # ids 0, 1 and 2
Digits = Literal["single", "threes", "free"]
Whitespace = Literal["runs", "single"]


def train_byte_bpe(
    texts: Iterable[str], *, vocab_size: int, digits: Digits, whitespace: Whitespace, special_tokens: Sequence[str]
) -> Tokenizer:
    """A tokenizer with BOS, EOS, PAD, the special tokens, 256 bytes and merges; fewer than asked where text runs out.

    Equal texts give equal merges, whatever the number of threads.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(digits, whitespace)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[
            AddedToken(token, special=True, normalized=False) for token in (BOS, EOS, PAD, *special_tokens)
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return backend


def write_byte_bpe(folder: Path, backend: Tokenizer, special_tokens: Sequence[str]) -> None:
    """Write tokenizer.json and tokenizer_config.json, as `AutoTokenizer` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "tokenizer.json") as temporary:
        temporary.write_text(backend.to_str(pretty=True) + "\n", encoding="utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # "<s>" in a text is three characters, as in training
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "additional_special_tokens": list(special_tokens),
        },
    )


def piece_bytes(piece: str) -> bytes:
    """The bytes that a piece of a byte-level vocabulary stands for."""
    table = _byte_of()
    return bytes(table[character] for character in piece)


@cache
def _byte_of() -> dict[str, int]:
    """Byte-level BPE writes a byte as a printable character: itself where it is one, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}

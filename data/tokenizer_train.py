"""Training a tokenizer on a sample of a dataset's documents: SentencePiece (unigram, BPE) or byte-level BPE.

train_tokenizer(TokenizerConfig(vocab_size=2048), shards, folder)  ->  folder/tokenizer.model, tokenizer.json, ...
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from data.tokenizer import SentencePieceTokenizer, Tokenizer
from data.tokenizer_bytes import train_byte_bpe, write_byte_bpe
from data.tokenizer_config import REQUIRED_CHARS, SPECIAL_IDS, TokenizerConfig
from data.tokenizer_json import JsonTokenizer, parse_model
from data.tokenizer_sample import (
    CHUNK_CHARS,
    SPACE,
    balanced_texts,
    covered_texts,
    sample_texts,
    training_chunks,
)

VERSION = 1
LIBRARIES = ("py3langid", "sentencepiece", "tokenizers")
CODE_MODULES = (
    "data.languages",
    "data.tokenizer",
    "data.tokenizer_bytes",
    "data.tokenizer_config",
    "data.tokenizer_json",
    "data.tokenizer_sample",
    "data.tokenizer_train",
    "data.tokenizer_words",
)

# Unigram scores (nats) are rounded to this grid, so that sums over a text are exact in float32 up to 2**18 nats and a
# tie between two segmentations is the same tie in sentencepiece (float32) and in tokenizers (float64).
SCORE_GRID = 1 / 64


def train_tokenizer(config: TokenizerConfig, shards: Sequence[Path], output: Path) -> Tokenizer:
    """Train on a sample of the training documents of `shards`, save to the folder `output`, return the tokenizer.

    Equal config and documents give equal bytes, however the documents are spread over shards. Raises ValueError in one
    line when there is no training text or when it does not support as many pieces.
    """
    texts = training_sample(config, shards)
    if config.kind == "byte_bpe":
        backend = train_byte_bpe(
            texts,
            vocab_size=config.vocab_size,
            digits=config.digits,
            whitespace=config.whitespace,
            special_tokens=config.control_tokens,
        )
        if (found := backend.get_vocab_size()) < config.vocab_size:
            raise ValueError(_training_failure(config, sum(map(len, texts)), f"ocabulary size <= {found}"))
        write_byte_bpe(output, backend, config.control_tokens)
        return JsonTokenizer(output)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(chunk for text in texts for chunk in training_chunks(text)),
            model_writer=model,
            **_trainer_settings(config),
        )
    except RuntimeError as error:
        raise ValueError(_training_failure(config, sum(map(len, texts)), str(error))) from error
    tokenizer = SentencePieceTokenizer(finished_model(model.getvalue()))
    tokenizer.save(output)
    return tokenizer


def training_sample(config: TokenizerConfig, shards: Sequence[Path]) -> list[str]:
    """The texts that a tokenizer is trained on; ValueError in one line where there are none."""
    if config.language_alpha == 1 and not config.languages:  # as the text is: no language needs to be known
        texts = sample_texts(shards, config.sample_bytes, config.seed)
    else:
        texts = balanced_texts(shards, config.sample_bytes, config.seed, config.language_alpha, config.languages)
    if not any(texts):
        raise ValueError(f"no training text for a tokenizer in {len(shards)} document shards: all empty or held out")
    if config.script_coverage:
        return covered_texts(texts, config.character_coverage, dict(config.script_coverage))
    return texts


def finished_model(model: bytes) -> bytes:
    """The trained model as it is saved: pieces hold " " for "▁", text is not rewritten, scores lie on SCORE_GRID."""
    proto = parse_model(model)
    for piece in proto.pieces:
        if piece.type == piece.NORMAL:
            piece.piece = piece.piece.replace(SPACE, " ")
            if proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM:
                piece.score = round(piece.score / SCORE_GRID) * SCORE_GRID
    proto.normalizer_spec.escape_whitespaces = False
    return proto.SerializeToString(deterministic=True)


def _trainer_settings(config: TokenizerConfig) -> dict[str, Any]:
    return {
        "model_type": config.kind,
        "vocab_size": config.vocab_size,
        # counted script by script before, where that is asked for: then all that is left is covered
        "character_coverage": 1.0 if config.script_coverage else config.character_coverage,
        "num_threads": config.num_threads,
        "control_symbols": list(config.control_tokens),
        "byte_fallback": True,
        "split_digits": config.digits == "single",
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": config.whitespace == "runs",
        "required_chars": REQUIRED_CHARS,
        "max_sentence_length": 8 * CHUNK_CHARS,  # bytes; longer ones would be skipped
        "minloglevel": 2,
        **SPECIAL_IDS,
    }


def _training_failure(config: TokenizerConfig, chars: int, message: str) -> str:
    if small := re.search(r"smaller than required_chars\D*(\d+) vs (\d+)", message):
        return (
            f"tokenizer.vocab_size={config.vocab_size} is below the {small.group(2)} special, byte and single-character"
            " pieces that this text needs; raise it or lower character_coverage"
        )
    limit = re.search(r"<= (\d+)", message)
    if "ocabulary size" in message or limit:
        most = f"at most {limit.group(1)}" if limit else "fewer"
        return (
            f"tokenizer.vocab_size={config.vocab_size}: {chars} characters of training text support {most} pieces; "
            "lower vocab_size or give more text"
        )
    return f"SentencePiece cannot train on {chars} characters: {' '.join(message.split())[:200]}"

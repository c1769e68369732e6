"""Tokenizers: trained here (SentencePiece or byte-level BPE), or read from any folder with a `tokenizer.json`.

    train_tokenizer(TokenizerConfig(vocab_size=2048), shards, folder)  ->  folder/tokenizer.model, tokenizer.json, ...
    load_tokenizer(folder)                                             ->  Tokenizer

Every string round-trips: normalisation is the identity, unknown characters become UTF-8 bytes, and spaces are stored
as spaces. (SentencePiece writes a space as "▁" and cannot tell it from a real "▁"; the trained model is rewritten to
hold plain spaces, so that sentencepiece, transformers and this module agree on every id.)
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece

from data.tables import atomic_path
from data.tokenizer_bytes import train_byte_bpe, write_byte_bpe
from data.tokenizer_config import REQUIRED_CHARS, SPECIAL_IDS, TokenizerConfig
from data.tokenizer_json import JsonTokenizer, fingerprint_of, parse_model, write_json_folder
from data.tokenizer_sample import (
    CHUNK_CHARS,
    SPACE,
    balanced_texts,
    covered_texts,
    sample_texts,
    training_chunks,
)
from data.tokenizer_words import WordMemory, split_at_spaces

VERSION = 1
LIBRARIES = ("py3langid", "sentencepiece", "tokenizers")
CODE_MODULES = (
    "data.languages",
    "data.tokenizer",
    "data.tokenizer_bytes",
    "data.tokenizer_config",
    "data.tokenizer_json",
    "data.tokenizer_sample",
    "data.tokenizer_words",
)

MODEL_FILE = "tokenizer.model"
# Unigram scores (nats) are rounded to this grid, so that sums over a text are exact in float32 up to 2**18 nats and a
# tie between two segmentations is the same tie in sentencepiece (float32) and in tokenizers (float64).
SCORE_GRID = 1 / 64
WORD_END = re.compile("[^ ] ")
LONG_TEXT = 1 << 16  # characters: SentencePiece is given longer texts in parts, since its memory grows with length


class Tokenizer(Protocol):
    """Text to ids and back. Ids of text never hold BOS or EOS: `data.tokenize` adds those."""

    @property
    def vocab_size(self) -> int:
        """Pieces in all, special ones included."""
        ...

    @property
    def bos_id(self) -> int:
        """Id that documents begin with."""
        ...

    @property
    def eos_id(self) -> int:
        """Id that documents end with."""
        ...

    @property
    def pad_id(self) -> int:
        """Id that fills up rows."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of all that shapes the ids, for keys and checks."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...

    def piece(self, token: int) -> str:
        """A token as the vocabulary spells it."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` and transformers' AutoTokenizer read into a folder."""
        ...


class SentencePieceTokenizer:
    """A model trained by `train_tokenizer`. Special pieces are never found in text: "<s>" is three characters."""

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._words = WordMemory(split_at_spaces, self._encode_words)
        self.vocab_size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.pad_id: int = self._processor.pad_id()
        spec = parse_model(model).trainer_spec
        self._bpe = spec.model_type == spec.BPE

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without BOS and EOS."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many texts, uint32, in this thread.

        No piece crosses from a word to the space after it, so words are encoded apart. BPE slows down with the length
        of a text, so each distinct word is encoded once and remembered. Unigram does not and takes texts as they are.
        """
        return self._words.encode_batch(texts) if self._bpe else self._encode_texts(texts)

    def _encode_words(self, words: list[str]) -> list[np.ndarray]:
        return self._processor.encode(words, num_threads=1, return_type="numpy")

    def _encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Arrays come straight from SentencePiece: lists of ids would cost a quarter of the time, a batch a thread."""
        encode = partial(self._processor.encode, return_type="numpy")
        parts = ([text] if len(text) <= LONG_TEXT else word_chunks(text) for text in texts)
        found = [[encode(part) for part in pieces] for pieces in parts]
        return [(ids[0] if len(ids) == 1 else np.concatenate(ids)).view(np.uint32) for ids in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        return self._processor.decode([int(token) for token in ids])

    def piece(self, token: int) -> str:
        """How one id is written in the vocabulary."""
        return self._pieces[int(token)]

    @cached_property
    def _pieces(self) -> list[str]:
        return self._processor.id_to_piece(list(range(self.vocab_size)))

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of text that one id stands for; none for a control piece."""
        if self._processor.is_byte(token):
            return bytes([int(self.piece(token)[3:5], 16)])
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return b""
        return self.piece(token).encode()

    @cached_property
    def fingerprint(self) -> str:
        """Equal exactly for tokenizers with the same vocabulary, special ids and segmentation."""
        return fingerprint_of(self)

    def save(self, folder: Path) -> None:
        """Write tokenizer.model and the files that transformers reads."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / MODEL_FILE) as temporary:
            temporary.write_bytes(self._model)
        write_json_folder(folder, self._model)


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


def word_chunks(text: str) -> Iterator[str]:
    """Cut a text before spaces that follow a word, at about CHUNK_CHARS characters: no piece crosses those places."""
    start = 0
    while start < len(text):
        end = WORD_END.search(text, start + CHUNK_CHARS)
        stop = end.start() + 1 if end else len(text)
        yield text[start:stop]
        start = stop


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


def load_tokenizer(folder: Path | str, *, needs_eos: bool = True) -> Tokenizer:
    """The tokenizer of a folder: `tokenizer.model` written by `train_tokenizer`, else `tokenizer.json`.

    needs_eos: as of `JsonTokenizer`. Raises ValueError in one line when neither is there or the file cannot be read.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        if not (folder / MODEL_FILE).is_file():
            return JsonTokenizer(folder, needs_eos=needs_eos)
        # A Hugging Face folder may carry another library's tokenizer.model beside the tokenizer.json that counts.
        ours = _read_ours(folder / MODEL_FILE)
        return ours if ours is not None else JsonTokenizer(folder, needs_eos=needs_eos)
    if (folder / MODEL_FILE).is_file():
        tokenizer = _read_ours(folder / MODEL_FILE)
        if tokenizer is not None:
            return tokenizer
        raise ValueError(
            f"{folder / MODEL_FILE}: not a whole model trained here (cut, or another SentencePiece model, which "
            "rewrites spaces); copy it again, or put a tokenizer.json beside it"
        )
    raise ValueError(f"{folder}: no tokenizer here; expected tokenizer.model or tokenizer.json")


def _read_ours(path: Path) -> SentencePieceTokenizer | None:
    """The tokenizer when its spaces are plain, None for another SentencePiece model, ValueError when unreadable."""
    model = path.read_bytes()
    try:
        proto = parse_model(model)
        return None if proto.normalizer_spec.escape_whitespaces else SentencePieceTokenizer(model)
    except Exception as error:  # protobuf and sentencepiece raise kinds of their own
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path}: not a readable SentencePiece model ({reason}); copy it again") from error


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

"""Tokenizers: trained here with SentencePiece, or read from any folder with a `tokenizer.json`.

    train_tokenizer(TokenizerConfig(vocab_size=2048), shards, folder)  ->  folder/tokenizer.model, tokenizer.json, ...
    load_tokenizer(folder)                                             ->  Tokenizer

Every string round-trips: normalisation is the identity, unknown characters become UTF-8 bytes, and spaces are stored
as spaces. (SentencePiece writes a space as "▁" and cannot tell it from a real "▁"; the trained model is rewritten to
hold plain spaces, so that sentencepiece, transformers and this module agree on every id.)
"""

from __future__ import annotations

import io
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import sentencepiece

from data.tables import atomic_path
from data.tokenizer_json import JsonTokenizer, fingerprint_of, parse_model, write_json_folder
from data.tokenizer_sample import CHUNK_CHARS, SPACE, sample_texts, training_chunks

VERSION = 1
LIBRARIES = ("sentencepiece",)
CODE_MODULES = ("data.tokenizer", "data.tokenizer_json", "data.tokenizer_sample")

MODEL_FILE = "tokenizer.model"
SPECIAL_IDS = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3}  # pieces <unk> <s> </s> <pad>
BYTE_PIECES = 256
# Always in the vocabulary, so that ASCII text never needs byte pieces.
REQUIRED_CHARS = "".join(map(chr, range(0x21, 0x7F))) + "\n" + SPACE
# Unigram scores (nats) are rounded to this grid, so that sums over a text are exact in float32 up to 2**18 nats and a
# tie between two segmentations is the same tie in sentencepiece (float32) and in tokenizers (float64).
SCORE_GRID = 1 / 64
WORD_END = re.compile("[^ ] ")
WORDS = re.compile(" *[^ ]+| +")  # spaces and what follows them: pieces have spaces at their beginning only
REMEMBERED_CHARS = 8 << 20  # of distinct words whose ids a tokenizer keeps before it starts anew (about 100 MB)
SMALLEST_VOCABULARY = len(SPECIAL_IDS) + BYTE_PIECES + len(REQUIRED_CHARS)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How the tokenizer of a dataset is trained. Every field shapes its bytes.

    kind: SentencePiece BPE or unigram.
    vocab_size: pieces in all, with the special, byte and single-character ones.
    sample_bytes: UTF-8 bytes of training text, taken by a hash of the document id.
    character_coverage: share of the sample's characters that get a piece of their own; others become bytes.
    special_tokens: further control pieces (chat marks); they have ids but are never found in text.
    num_threads: of the trainer; unigram's bytes depend on it, so it is a setting and not a machine's number of cores.
    """

    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: int = 32_000
    sample_bytes: int = 10_000_000
    character_coverage: float = 0.9995
    special_tokens: tuple[str, ...] = ()
    num_threads: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("bpe", "unigram"):
            raise ValueError(f"tokenizer.kind={self.kind!r}: expected 'bpe' or 'unigram'")
        least = SMALLEST_VOCABULARY + len(self.special_tokens)
        if self.vocab_size <= least:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} leaves no room beside {least} special, byte and ASCII pieces; "
                f"set it above {least}"
            )
        if self.sample_bytes < 1:
            raise ValueError(f"tokenizer.sample_bytes={self.sample_bytes}: expected at least 1 byte")


class Tokenizer(Protocol):
    """Text to ids and back. Ids of text never hold BOS or EOS: `data.tokenize` adds those."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def piece(self, token: int) -> str: ...
    def save(self, folder: Path) -> None: ...


class SentencePieceTokenizer:
    """A model trained by `train_tokenizer`. Special pieces are never found in text: "<s>" is three characters."""

    def __init__(self, model: bytes):
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._ids_of: dict[str, bytes] = {}
        self._remembered = 0
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
        of a text, so each distinct word is encoded once and remembered. Unigram does not and takes long chunks.
        """
        return self._encode_words(texts) if self._bpe else self._encode_chunks(texts)

    def _encode_words(self, texts: Sequence[str]) -> list[np.ndarray]:
        words = [WORDS.findall(text) for text in texts]
        if self._remembered > REMEMBERED_CHARS:
            self._ids_of, self._remembered = {}, 0
        ids_of = self._ids_of  # held here, so that another thread may start a new one
        new = [word for word in set().union(*words) if word not in ids_of]
        self._remembered += sum(map(len, new))
        for word, ids in zip(new, self._processor.encode(new, num_threads=1)):
            ids_of[word] = array("I", ids).tobytes()
        return [np.frombuffer(b"".join(map(ids_of.__getitem__, text_words)), np.uint32) for text_words in words]

    def _encode_chunks(self, texts: Sequence[str]) -> list[np.ndarray]:
        chunks = [list(word_chunks(text)) for text in texts]
        ids = iter(self._processor.encode([chunk for parts in chunks for chunk in parts], num_threads=1))
        return [np.array([token for _ in parts for token in next(ids)], np.uint32) for parts in chunks]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        return self._processor.decode([int(token) for token in ids])

    def piece(self, token: int) -> str:
        """How one id is written in the vocabulary."""
        return self._processor.id_to_piece(int(token))

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


def train_tokenizer(config: TokenizerConfig, shards: Sequence[Path], output: Path) -> SentencePieceTokenizer:
    """Train on a sample of the training documents of `shards`, save to the folder `output`, return the tokenizer.

    Equal config and documents give equal bytes, however the documents are spread over shards. Raises ValueError in one
    line when there is no training text or when it does not support as many pieces.
    """
    texts = sample_texts(shards, config.sample_bytes, config.seed)
    if not any(texts):
        raise ValueError(f"no training text for a tokenizer in {len(shards)} document shards: all empty or held out")
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


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a folder: `tokenizer.model` written by `train_tokenizer`, else `tokenizer.json`.

    Raises ValueError in one line when neither is there or the file cannot be read.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file():
        if not (folder / MODEL_FILE).is_file():
            return JsonTokenizer(folder)
        # A Hugging Face folder may carry another library's tokenizer.model beside the tokenizer.json that counts.
        ours = _read_ours(folder / MODEL_FILE)
        return ours if ours is not None else JsonTokenizer(folder)
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
        "character_coverage": config.character_coverage,
        "num_threads": config.num_threads,
        "control_symbols": list(config.special_tokens),
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "required_chars": REQUIRED_CHARS,
        "max_sentence_length": 8 * CHUNK_CHARS,  # bytes; longer ones would be skipped
        "minloglevel": 2,
        **SPECIAL_IDS,
    }


def _training_failure(config: TokenizerConfig, chars: int, message: str) -> str:
    limit = re.search(r"<= (\d+)", message)
    if "ocabulary size" in message or limit:
        most = f"at most {limit.group(1)}" if limit else "fewer"
        return (
            f"tokenizer.vocab_size={config.vocab_size}: {chars} characters of training text support {most} pieces; "
            "lower vocab_size or give more text"
        )
    return f"SentencePiece cannot train on {chars} characters: {' '.join(message.split())[:200]}"

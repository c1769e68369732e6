"""Tokenizers: those that `data.tokenizer_train` trained, or any folder with a `tokenizer.json`.

Every string round-trips: normalisation is the identity, unknown characters become UTF-8 bytes, and spaces are stored
as spaces. (SentencePiece writes a space as "▁" and cannot tell it from a real "▁"; the trained model is rewritten to
hold plain spaces, so that sentencepiece, transformers and this module agree on every id.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from data.tables import atomic_path
from data.tokenizer_json import JsonTokenizer, fingerprint_of, parse_model, write_json_folder
from data.tokenizer_sample import CHUNK_CHARS
from data.tokenizer_words import WordMemory, split_at_spaces

MODEL_FILE = "tokenizer.model"
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
    """A model trained by `data.tokenizer_train`. Special pieces are never found in text: "<s>" is three characters."""

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
        """All parts of all texts in one call, which lets other threads run; as arrays: lists cost a quarter more."""
        parts = [[text] if len(text) <= LONG_TEXT else list(word_chunks(text)) for text in texts]
        encoded = iter(self._encode_words(list(chain.from_iterable(parts))))
        found = [list(islice(encoded, len(pieces))) for pieces in parts]
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


def word_chunks(text: str) -> Iterator[str]:
    """Cut a text before spaces that follow a word, at about CHUNK_CHARS characters: no piece crosses those places."""
    start = 0
    while start < len(text):
        end = WORD_END.search(text, start + CHUNK_CHARS)
        stop = end.start() + 1 if end else len(text)
        yield text[start:stop]
        start = stop


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

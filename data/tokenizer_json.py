"""The `tokenizer.json` side of tokenizers: writing ours so that transformers gives the same ids, reading anyone's.

A folder written here is read by `transformers.AutoTokenizer`. Called on a text it puts BOS before it, as documents
begin in training; with `add_special_tokens=False` it gives the ids of `Tokenizer.encode`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as Backend

from data.tables import atomic_path, write_json
from data.tokenizer_bytes import piece_bytes
from data.tokenizer_words import WordMemory, byte_level_split, is_assigned

if TYPE_CHECKING:
    from data.tokenizer import Tokenizer

JSON_FILE, CONFIG_FILE, MAP_FILE = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
# A score that no path of characters reaches: keeps "<0x41>" and "<s>" in text from being read as those pieces.
NEVER = -10_000.0
# Text on which a tokenizer's segmentation shows: words, code, spaces, digits, scripts, bytes.
PROBE = (
    "The quick brown fox jumps over the lazy dog; it's 12345 times faster than\tthe others.\r\n\r\n"
    "def f(self, *args: int) -> dict[str, float]:\n        return {'a': 0.25e-3, \"b\": self._x[1:]}  # éàü\n    \n"
    "Straße naïve Ελλάδα Россия العربية हिन्दी 日本語の文章 한국어 ไทย 👩‍👩‍👧 \u0000\u0007▁ <s></s> internationalization"
)


class JsonTokenizer:
    """Any `tokenizer.json` with the special tokens that the folder's `tokenizer_config.json` names.

    Special tokens are not looked for in text. A tokenizer without BOS begins documents with its EOS, as GPT-2 was
    trained; one without a padding token pads with EOS (padding has no loss and is masked). needs_eos: without EOS no
    dataset can be made (ValueError), but text can be measured; the ids of BOS, EOS and padding are then -1.
    """

    def __init__(self, folder: Path, *, needs_eos: bool = True):
        path = folder / JSON_FILE
        try:
            self._text = path.read_text(encoding="utf-8")
            self._backend = Backend.from_str(self._text)
        except Exception as error:  # tokenizers raises bare Exception
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{path}: not a readable tokenizer ({reason}); copy it again") from error
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self._config = _special_config(folder)
        eos = self._special("eos_token")
        if eos is None and needs_eos:
            raise ValueError(f"{folder}: no eos_token in {CONFIG_FILE} or {MAP_FILE}; documents cannot be told apart")
        self.eos_id: int = _first(eos, -1)
        self.bos_id: int = _first(self._special("bos_token"), self.eos_id)
        self.pad_id: int = _first(self._special("pad_token"), self.eos_id)
        self._added = self._backend.get_added_tokens_decoder()
        spec = json.loads(self._text)
        self._byte_level = "ByteLevel" in json.dumps(spec.get("decoder"))
        split = byte_level_split(spec)
        self._words = WordMemory(split, self._encode_texts) if split else None
        self.vocab_size: int = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without BOS and EOS."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of many texts, uint32: by their words where this tokenizer's words are known."""
        if self._words is None:
            return self._encode_texts(texts)
        by_words = [is_assigned(text) for text in texts]
        known = iter(self._words.encode_batch(list(compress(texts, by_words))))
        others = iter(self._encode_texts([text for text, known_chars in zip(texts, by_words) if not known_chars]))
        return [next(known if known_chars else others) for known_chars in by_words]

    def _encode_texts(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=True)

    def piece(self, token: int) -> str:
        """How one id is written in the vocabulary; empty for an id that no piece has."""
        return self._backend.id_to_token(int(token)) or ""

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of text that one id stands for; none for a special token."""
        piece = self.piece(token)
        if token in self._added:  # written as it is in text, in byte-level vocabularies too
            return b"" if self._added[token].special else piece.encode()
        if self._byte_level:
            return piece_bytes(piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.encode()

    @cached_property
    def fingerprint(self) -> str:
        """Equal exactly for tokenizers with the same vocabulary, special ids and segmentation."""
        return fingerprint_of(self)

    def save(self, folder: Path) -> None:
        """Write the same tokenizer to another folder."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / JSON_FILE) as temporary:
            temporary.write_text(self._text, encoding="utf-8")
        write_json(folder / CONFIG_FILE, self._config)

    def _special(self, name: str) -> int | None:
        token = self._config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if text is None:
            return None
        found = self._backend.token_to_id(text)
        if found is None:
            raise ValueError(
                f"{CONFIG_FILE} names {name} {text!r}, a token that {JSON_FILE} does not have; mend either"
            )
        return found


def fingerprint_of(tokenizer: Tokenizer) -> str:
    """A hash of the vocabulary in id order, the special ids and the segmentation of a fixed text: 32 hex digits."""
    digest = xxhash.xxh3_128()
    for token in range(tokenizer.vocab_size):
        digest.update(tokenizer.piece(token).encode("utf-8", "surrogatepass") + b"\0")
    ids = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, *tokenizer.encode(PROBE)]
    digest.update(json.dumps(ids).encode())
    return digest.hexdigest()


def parse_model(model: bytes) -> Any:
    """A SentencePiece model as a message (sentencepiece_model.proto)."""
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
    proto.ParseFromString(model)
    return proto


def write_json_folder(folder: Path, model: bytes) -> None:
    """Write tokenizer.json and tokenizer_config.json for a SentencePiece model with plain spaces and byte fallback."""
    proto = parse_model(model)
    special = {i: p.piece for i, p in enumerate(proto.pieces) if p.type in (p.CONTROL, p.UNKNOWN)}
    bpe = proto.trainer_spec.model_type == proto.trainer_spec.BPE
    bos = proto.pieces[proto.trainer_spec.bos_id].piece
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(i, piece) for i, piece in special.items()],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [proto.trainer_spec.bos_id], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _bpe_model(proto) if bpe else _unigram_model(proto),
    }
    with atomic_path(folder / JSON_FILE) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    spec = proto.trainer_spec
    named = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id, "unk_token": spec.unk_id}
    write_json(
        folder / CONFIG_FILE,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # "<s>" in a text is three characters, as in training
            "additional_special_tokens": [p for i, p in special.items() if i not in named.values()],
            **{name: special[i] for name, i in named.items()},
        },
    )


def _bpe_model(proto: Any) -> dict[str, Any]:
    """SentencePiece merges two neighbours when their concatenation is a piece, best score first, leftmost on a tie.

    As a merge list: every way to cut a piece into two pieces, in the order of the pieces' scores.
    """
    normal = {p.piece: p.score for p in proto.pieces if p.type == p.NORMAL}
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in sorted(normal, key=lambda piece: -normal[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": proto.pieces[proto.trainer_spec.unk_id].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {p.piece: i for i, p in enumerate(proto.pieces)},
        "merges": merges,
    }


def _unigram_model(proto: Any) -> dict[str, Any]:
    vocab = [[p.piece, p.score if p.type == p.NORMAL else NEVER] for p in proto.pieces]
    return {"type": "Unigram", "unk_id": proto.trainer_spec.unk_id, "vocab": vocab, "byte_fallback": True}


def _added_token(token: int, piece: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": piece, **flags}


def _special_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, completed by special_tokens_map.json; {} when neither is there."""
    merged: dict[str, Any] = {}
    for name in (MAP_FILE, CONFIG_FILE):
        path = folder / name
        if path.is_file():
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}: not JSON ({error}); copy it again") from error
            merged |= {key: value for key, value in values.items() if value is not None or key not in merged}
    return merged


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)

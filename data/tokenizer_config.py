"""What a tokenizer is trained as: its kind, its size, its sample, its rules for digits, white space and languages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from data.tokenizer_bytes import BYTES, Digits, Whitespace
from data.tokenizer_sample import SPACE

SPECIAL_IDS = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3}  # SentencePiece's <unk> <s> </s> <pad>
# Always in a SentencePiece vocabulary, so that ASCII text never needs byte pieces.
REQUIRED_CHARS = "".join(map(chr, range(0x21, 0x7F))) + "\n" + SPACE
SMALLEST_VOCABULARY = {
    "bpe": len(SPECIAL_IDS) + BYTES + len(REQUIRED_CHARS),
    "unigram": len(SPECIAL_IDS) + BYTES + len(REQUIRED_CHARS),
    "byte_bpe": 3 + BYTES,
}
TAKEN = re.compile("<s>|</s>|<pad>|<unk>|<0x[0-9A-F]{2}>")  # pieces of every SentencePiece vocabulary
RESERVED_TOKEN = "<|reserved_{}|>"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How the tokenizer of a dataset is trained. Every field shapes its bytes.

    kind: SentencePiece BPE or unigram, where characters without a piece become bytes; "byte_bpe" merges bytes.
    vocab_size: pieces in all, with the special, byte and single-character ones.
    sample_bytes: UTF-8 bytes of training text, taken by a hash of the document id.
    language_alpha: of n bytes in a language the sample has a share proportional to n ** alpha: 1 as the text is, 0.3
        lifts small languages, 0 all alike. The language is the one declared in meta, scored by a step, or detected.
    languages: the only ones sampled, each of which must have text; empty for all.
    character_coverage: share of the sample's characters that get a piece of their own; others become bytes.
    script_coverage: (script, share) pairs; with any, coverage is counted script by script ("CJK", "HANGUL", ...).
    digits: each a piece ("single"), in threes (byte_bpe only), or merged like letters ("free").
    whitespace: "runs" of spaces can be one piece, as indented code wants it, or each is "single".
    special_tokens: further control pieces (chat marks); they have ids but are never found in text.
    reserved_tokens: so many control pieces more, <|reserved_0|> and on, for later use.
    num_threads: of the trainer; unigram's bytes depend on it, so it is a setting and not a machine's number of cores.
    """

    kind: Literal["bpe", "unigram", "byte_bpe"] = "bpe"
    vocab_size: int = 32_000
    sample_bytes: int = 10_000_000
    language_alpha: float = 1.0
    languages: tuple[str, ...] = ()
    character_coverage: float = 0.9995
    script_coverage: tuple[tuple[str, float], ...] = ()
    digits: Digits = "single"
    whitespace: Whitespace = "runs"
    special_tokens: tuple[str, ...] = ()
    reserved_tokens: int = 0
    num_threads: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("kind", ("bpe", "unigram", "byte_bpe")),
            ("digits", ("single", "threes", "free")),
            ("whitespace", ("runs", "single")),
        ):
            if getattr(self, name) not in known:
                expected = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
                raise ValueError(f"tokenizer.{name}={getattr(self, name)!r}: expected {expected}")
        if self.kind == "byte_bpe" and self.script_coverage:
            raise ValueError("tokenizer.script_coverage has no meaning for byte_bpe, which has a piece for every byte")
        if self.kind != "byte_bpe" and self.digits == "threes":
            raise ValueError(f"tokenizer.digits='threes' is for byte_bpe; {self.kind} knows 'single' and 'free'")
        if not 0 <= self.language_alpha <= 1:
            raise ValueError(f"tokenizer.language_alpha={self.language_alpha}: expected 0 (all alike) to 1 (as it is)")
        for script, share in (("character_coverage", self.character_coverage), *self.script_coverage):
            if not 0 < share <= 1:
                raise ValueError(f"tokenizer: the coverage of {script} is {share}; expected a share above 0, at most 1")
        tokens = self.control_tokens
        if self.reserved_tokens < 0 or len(set(tokens)) < len(tokens) or not all(tokens):
            raise ValueError(f"tokenizer.special_tokens {list(self.special_tokens)}: expected different names")
        if taken := [token for token in tokens if TAKEN.fullmatch(token)]:
            raise ValueError(
                f"tokenizer.special_tokens {list(self.special_tokens)}: {taken[0]} is already a piece; take another"
            )
        least = SMALLEST_VOCABULARY[self.kind] + len(tokens)
        if self.vocab_size <= least:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size} leaves no room beside {least} special, byte and ASCII pieces; "
                f"set it above {least}"
            )
        if self.sample_bytes < 1:
            raise ValueError(f"tokenizer.sample_bytes={self.sample_bytes}: expected at least 1 byte")

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """All control pieces but BOS, EOS and the like."""
        return (*self.special_tokens, *(RESERVED_TOKEN.format(n) for n in range(self.reserved_tokens)))

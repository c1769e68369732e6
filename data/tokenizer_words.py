"""Encoding by distinct words: a text is cut where no piece can cross, and a word seen before is not encoded again.

Most words of a corpus are repeats, so that a text costs its cutting and one look-up a word. Byte-level BPE gains most:
`tokenizers` spends its time on cutting and rewriting text, not on merging.

    SentencePiece    a word is spaces and what follows them
    byte-level BPE   a word is a match of the pattern that its `tokenizer.json` names, where that is in `PATTERNS`:
                     those that mean the same to `regex` and to Oniguruma, which `tokenizers` cuts with
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import regex

REMEMBERED_CHARS = 8 << 20  # of distinct words whose ids are kept before the memory starts anew (about 100 MB)

# SentencePiece has spaces at the beginning of a piece only.
split_at_spaces: Callable[[str], list[str]] = re.compile(" *[^ ]+| +").findall

# As in openai/gpt-2 (src/encoder.py), which is also what a ByteLevel pre-tokenizer of its own cuts by, ...
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# ... the same after each digit stood alone (SmolLM2): white space before a digit is then the end of a text, ...
GPT2_DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
# ... and of Llama 3 and Qwen 2, from their tokenizer.json.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def split_pattern(digits: str, whitespace: str) -> str:
    """How a byte-level BPE trained here cuts text (`TokenizerConfig.digits`, `.whitespace`).

    A word with the space or mark before it, digits, marks with line ends after them, white space. Combining marks
    belong to words, so that scripts that write vowels with them are not cut inside a syllable.
    """
    number = {"single": r"\p{N}", "threes": r"\p{N}{1,3}", "free": r"\p{N}+"}[digits]
    blank = {"runs": r"\s*[\r\n]+|\s+(?!\S)|\s+", "single": r"\s"}[whitespace]
    return rf"[^\r\n\p{{L}}\p{{M}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{number}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{blank}"


TRAINED_HERE = [split_pattern(digits, blank) for digits in ("single", "threes", "free") for blank in ("runs", "single")]
PATTERNS = frozenset((LLAMA3, QWEN2, *TRAINED_HERE))


class WordMemory:
    """The ids of every word met so far.

    split: text -> its words, which joined are the text. encode: distinct words -> the uint32 ids of each; the ids of a
    text are those of its words, one after another.
    """

    def __init__(self, split: Callable[[str], list[str]], encode: Callable[[list[str]], Iterable[np.ndarray]]):
        self._split, self._encode = split, encode
        self._ids_of: dict[str, bytes] = {}
        self._remembered = 0

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, uint32."""
        words = [self._split(text) for text in texts]
        if self._remembered > REMEMBERED_CHARS:
            self._ids_of, self._remembered = {}, 0
        ids_of = self._ids_of  # held here, so that another thread may start a new one
        new = [word for word in set().union(*words) if word not in ids_of]
        self._remembered += sum(map(len, new))
        for word, ids in zip(new, self._encode(new)):
            ids_of[word] = ids.tobytes()
        return [np.frombuffer(b"".join(map(ids_of.__getitem__, text_words)), np.uint32) for text_words in words]


def byte_level_split(spec: Mapping[str, Any]) -> Callable[[str], list[str]] | None:
    """What cuts text as a `tokenizer.json` does; None where words cannot be told here, and whole texts are encoded.

    None for any model but BPE without dropout, with a normalizer, with added tokens that are found in text, or with
    another pre-tokenizer than those of this module.
    """
    model, cut = spec.get("model") or {}, spec.get("pre_tokenizer") or {}
    found_in_text = [token for token in spec.get("added_tokens") or () if not token["special"]]
    if model.get("type") != "BPE" or model.get("dropout") or spec.get("normalizer") or found_in_text:
        return None
    *first, last = cut["pretokenizers"] if cut.get("type") == "Sequence" else [cut]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    by_itself = last.get("use_regex", True)
    if not first and by_itself:
        return regex.compile(GPT2).findall
    if len(first) == 1 and by_itself and first[0] == {"type": "Digits", "individual_digits": True}:
        return regex.compile(GPT2_DIGITS).findall
    if len(first) == 1 and not by_itself and first[0].get("type") == "Split":
        pattern = first[0].get("pattern", {}).get("Regex")
        if pattern in PATTERNS and first[0]["behavior"] == "Isolated" and not first[0]["invert"]:
            return regex.compile(pattern).findall
    return None


def is_assigned(text: str) -> bool:
    """Whether all characters are assigned in this Python's Unicode: libraries differ about the class of newer ones."""
    return text.isascii() or "Cn" not in map(unicodedata.category, set(text))

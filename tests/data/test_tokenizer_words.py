"""Encoding by words: the same cuts as Oniguruma makes inside `tokenizers`, the same ids as whole texts have."""

import json
import random
import unicodedata

import numpy as np
import pytest
import regex
from tokenizers import Regex, pre_tokenizers

from data.tokenizer_bytes import train_byte_bpe, write_byte_bpe
from data.tokenizer_json import JsonTokenizer
from data.tokenizer_words import GPT2, GPT2_DIGITS, PATTERNS, WordMemory, byte_level_split, is_assigned, split_at_spaces

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
CUTTERS = {
    GPT2: GPT2_BYTES,
    GPT2_DIGITS: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2_BYTES]),
    **{p: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated"), BYTES]) for p in sorted(PATTERNS)},
}
PARTS = [
    *"aZ é漢ไṇ\u0301ा٣Ⅷ½5_.,-'\"(",
    *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2028", "\u200d", "\x1c", "\x85", "\ufeff", "\u180e", "👩‍👩‍👧", "🏽"),
    *("'s", "'S", "'ſ", "'LL", "'re", " the", "12345", "...", "  \n  ", "don't", "<s>", "\x00", "🇫🇷", "ﬃ", "K", "ſ"),
]


def odd_texts(count: int) -> list[str]:
    """Texts of letters, marks, digits and white space of every kind, in any order."""
    draw = random.Random(0)
    return ["".join(draw.choices(PARTS, k=draw.randint(0, 12))) for _ in range(count)]


def spec_of(cutter: pre_tokenizers.PreTokenizer) -> dict:
    """A tokenizer.json with this pre-tokenizer."""
    backend = train_byte_bpe(["a"], vocab_size=259, digits="free", whitespace="runs", special_tokens=())
    backend.pre_tokenizer = cutter
    return json.loads(backend.to_str())


@pytest.mark.parametrize("name", [r"\p{L}", r"\p{M}", r"\p{N}", r"\s"])
def test_both_libraries_give_every_assigned_character_the_same_class(name):
    text = "".join(c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs"))
    others = "".join(part for part, _ in pre_tokenizers.Split(Regex(name + "+"), "removed").pre_tokenize_str(text))
    assert regex.sub(name, "", text) == others


@pytest.mark.parametrize("pattern", CUTTERS, ids=range(len(CUTTERS)))
def test_words_are_cut_as_tokenizers_cuts_them(pattern):
    split, cutter = byte_level_split(spec_of(CUTTERS[pattern])), CUTTERS[pattern]
    assert split is not None
    for text in odd_texts(3000):
        expected = [text[start:stop] for _, (start, stop) in cutter.pre_tokenize_str(text)]
        assert split(text) == expected, repr(text)
        for word in expected:  # a word by itself is not cut further
            assert split(word) == [word], (text, word)


@pytest.mark.parametrize("digits, whitespace", [("threes", "runs"), ("single", "single"), ("free", "runs")])
def test_ids_by_words_are_those_of_whole_texts(tmp_path, digits, whitespace):
    texts = [*odd_texts(2000), "def f(x):\n        return x  # five\n\n" * 3, "a\u0378b new: \u088f \u1acf", ""]
    assert any(not is_assigned(text) for text in texts)
    backend = train_byte_bpe(
        texts, vocab_size=420, digits=digits, whitespace=whitespace, special_tokens=("<|im_end|>",)
    )
    write_byte_bpe(tmp_path, backend, ("<|im_end|>",))
    tokenizer = JsonTokenizer(tmp_path)
    for batch in (texts[:1000], texts[500:]):  # the second knows words of the first
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            assert ids.dtype == np.uint32 and ids.tolist() == tokenizer.encode(text), repr(text)


def test_other_tokenizers_are_encoded_by_whole_texts():
    spec = spec_of(CUTTERS[GPT2])
    assert byte_level_split(spec) is not None
    lower = {"type": "Lowercase"}
    token = {"id": 1, "content": "def", "special": False, "single_word": False, "lstrip": False, "rstrip": False}
    split = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    for change in (
        {"normalizer": lower},
        {"added_tokens": [token]},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}},
        {"model": {**spec["model"], "dropout": 0.1}},
        {"model": {"type": "Unigram"}},
    ):
        assert byte_level_split({**spec, **change}) is None, change


def test_a_memory_encodes_each_word_once_and_starts_anew_when_full(monkeypatch):
    asked: list[str] = []

    def encode(words: list[str]) -> list[np.ndarray]:
        asked.extend(words)
        return [np.array([len(word)], np.uint32) for word in words]

    memory = WordMemory(split_at_spaces, encode)
    for _ in range(2):
        assert [ids.tolist() for ids in memory.encode_batch(["ab  c ab", "", "c"])] == [[2, 3, 3], [], [1]]
    assert sorted(asked) == ["  c", " ab", "ab", "c"]
    monkeypatch.setattr("data.tokenizer_words.REMEMBERED_CHARS", 4)
    memory.encode_batch(["ab"])
    assert asked.count("ab") == 2

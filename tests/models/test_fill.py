"""The filler of masked words: whole words, never the original, the same for every batch, whatever the tokenizer."""

from dataclasses import dataclass

import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from models.checkpoints.bert import save_bert
from models.encoder import EncoderConfig, EncoderLM
from models.fill import MaskedFiller

WORDS = ("river", "water", "stone", "house", "green", "quiet", "heavy", "letter", "walks", "opens", "morning", "gate")
TEXT = "The quiet river opens a gate. Every morning the keeper walks to the unbelievable water, heavy with stone."


@dataclass(frozen=True)
class Item:
    text: str
    spans: tuple[tuple[int, int], ...]
    seed: int


def spans_of(text, *words):
    return tuple(sorted((text.index(word), text.index(word) + len(word)) for word in words))


def wordpiece():
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        "the",
        "a",
        "##s",
        "##ing",
        "to",
        "with",
        ".",
        ",",
        "un",
    ]
    pieces += ["##believable", "every", "keeper"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def byte_level():
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {piece: i for i, piece in enumerate(["<pad>", "<mask>", *letters])}
    merges = []
    for word in WORDS:
        so_far = "Ġ"
        for letter in word:
            if (so_far, letter) not in merges:
                merges.append((so_far, letter))
                vocab.setdefault(so_far + letter, len(vocab))
            so_far += letter
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<mask>"])
    return tokenizer


def model_folder(tokenizer, folder):
    """A random model with this tokenizer."""
    mask = next(tokenizer.token_to_id(name) for name in ("[MASK]", "<mask>") if tokenizer.token_to_id(name) is not None)
    config = EncoderConfig(
        vocab_size=tokenizer.get_vocab_size(),
        num_layers=1,
        embed_dim=16,
        num_heads=2,
        mlp_dim=16,
        max_positions=96,
        mask_id=mask,
    )
    save_bert(EncoderLM(config, rngs=nnx.Rngs(0)), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(wordpiece(), tmp_path_factory.mktemp("filler"))


@pytest.fixture(scope="module")
def filler(folder):
    return MaskedFiller(checkpoint=str(folder), top_k=4, batch_tokens=128).build()


@pytest.fixture(scope="module")
def byte_filler(tmp_path_factory):
    return MaskedFiller(checkpoint=str(model_folder(byte_level(), tmp_path_factory.mktemp("bytes"))), top_k=4).build()


def test_every_gap_gets_another_whole_word_of_the_vocabulary(filler):
    known = {word for word in filler.words if word}
    assert set(WORDS) <= known and "ing" not in known and "unbelievable" not in known
    spans = spans_of(TEXT, "quiet", "river", "unbelievable", "water", "stone")
    for seed in range(20):
        (found,) = filler.fill([Item(TEXT, spans, seed)])
        for (start, end), word in zip(spans, found):
            assert word in known and word != TEXT[start:end]


@pytest.mark.parametrize("name", ["filler", "byte_filler"])
def test_one_mask_stands_where_a_word_of_several_pieces_was(name, request):
    filler = request.getfixturevalue(name)
    assert set(WORDS) <= set(filler.words)
    (window,) = filler.windows(0, Item(TEXT, spans_of(TEXT, "unbelievable", "river"), 0))
    assert window.ids.count(filler.mask_id) == 2 and [span for _, span in window.masks] == [0, 1]
    assert [window.ids[place] for place, _ in window.masks] == [filler.mask_id] * 2
    plain = filler.tokenizer.encode(TEXT).ids
    before = window.masks[0][0]
    assert window.ids[:before] == plain[:before] and window.ids[-3:] == plain[-3:]


def test_a_text_is_filled_alike_in_every_batch_and_its_seed_matters(folder, filler):
    spans = spans_of(TEXT, "quiet", "river", "water", "heavy")
    items = [Item(TEXT, spans[: 1 + i % 4], i) for i in range(11)]
    whole = filler.fill(items)
    assert [filler.fill([item])[0] for item in items[:4]] == whole[:4]
    small = MaskedFiller(checkpoint=str(folder), top_k=4, batch_tokens=64).build()
    assert small.fill(items[::-1])[::-1] == whole
    assert len({tuple(filler.fill([Item(TEXT, spans, seed)])[0]) for seed in range(12)}) > 3


def test_a_text_longer_than_the_model_is_read_in_windows(filler):
    text = " ".join([TEXT] * 5)
    starts = [place for place in range(len(text)) if text.startswith("river", place)]
    (found,) = filler.fill([Item(text, tuple((start, start + 5) for start in starts), 3)])
    assert len(found) == 5 and all(word and word != "river" for word in found)


def test_a_folder_without_a_mask_is_refused_in_one_line(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        MaskedFiller(checkpoint=str(tmp_path)).build()
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no mask token"):
        MaskedFiller(checkpoint=str(tmp_path)).build()

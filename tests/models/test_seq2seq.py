"""MarianMT against transformers on torch: logits, greedy and beam search, folders both ways, batches."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from models.checkpoints.marian import load_marian, save_marian, search_config
from models.seq2seq_decode import Searcher
from models.seq2seq_search import SearchConfig
from models.translate import MarianTranslator

torch = pytest.importorskip("torch", reason="torch is not installed: parity with transformers is not tested")
import transformers  # noqa: E402

VOCAB, PAD, EOS = 61, 60, 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(their model, its folder, ours): random weights with a bias to EOS, so that sentences end at many lengths."""
    torch.manual_seed(1)
    config = transformers.MarianConfig(
        vocab_size=VOCAB,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=96,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
        forced_eos_token_id=EOS,
    )
    model = transformers.MarianMTModel(config)
    for name, parameter in model.named_parameters():
        if "embed_positions" not in name:
            parameter.data += 0.15 * torch.randn_like(parameter)
    model.final_logits_bias += 0.3 * torch.randn_like(model.final_logits_bias)
    model.final_logits_bias[0, EOS] += 1.5
    model.generation_config.bad_words_ids = [[PAD]]
    model.generation_config.max_length = 40
    folder = tmp_path_factory.mktemp("marian")
    model.eval().save_pretrained(folder)
    return model, folder, load_marian(folder)


@pytest.fixture(scope="module")
def sources():
    rng = np.random.default_rng(2)
    return [[*rng.integers(1, PAD, int(length)).tolist(), EOS] for length in rng.integers(2, 15, 24)]


def padded(sources):
    width = max(map(len, sources))
    ids = np.array([source + [PAD] * (width - len(source)) for source in sources])
    return ids, ids != PAD


def reference(model, sources, num_beams, **settings):
    """What transformers gives, batched and padded."""
    ids, mask = padded(sources)
    with torch.no_grad():
        found = model.generate(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(int)),
            num_beams=num_beams,
            **settings,
        ).tolist()
    out = []
    for row in found:
        row = row[1:]
        row = row[: row.index(EOS)] if EOS in row else row
        out.append([token for token in row if token != PAD])
    return out


def test_logits_are_those_of_transformers(pair, sources):
    model, _, ours = pair
    ids, mask = padded(sources[:5])
    targets = np.random.default_rng(3).integers(1, PAD, (5, 17))
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask.astype(int)),
            decoder_input_ids=torch.tensor(targets),
        ).logits.numpy()
    graph, state = nnx.split(ours)

    @jax.jit
    def logits(state, ids, mask, targets):
        model = nnx.merge(graph, state)
        return model.logits(model.decode(targets, model.encode(ids, mask), mask))

    found = np.asarray(logits(state, ids, mask, targets))
    assert np.abs(found - wanted).max() < 1e-4


@pytest.mark.parametrize("num_beams", [1, 4])
def test_search_gives_the_tokens_of_transformers(pair, sources, num_beams):
    model, folder, ours = pair
    config = dataclasses.replace(search_config(folder), num_beams=num_beams, batch_size=24)
    wanted = reference(model, sources, num_beams)
    lengths = {len(tokens) for tokens in wanted}
    assert len(lengths) > 2 and max(lengths) > 32, "sentences of several lengths, some past the first cache"
    assert Searcher(ours)(sources, config) == wanted


def test_what_is_left_after_banning_is_normalised_where_the_folder_says_so(pair, sources, tmp_path):
    model, folder, ours = pair
    settings = {"renormalize_logits": True, "bad_words_ids": [[PAD], [5], [9], [17], [33]]}
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    generation = json.loads((folder / "generation_config.json").read_text()) | settings | {"num_beams": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config = dataclasses.replace(search_config(tmp_path), batch_size=24)
    assert config.renormalize and config.banned == (PAD, 5, 9, 17, 33)
    found = Searcher(ours)(sources, config)
    assert found == reference(model, sources, 3, **settings)
    assert found != Searcher(ours)(sources, dataclasses.replace(config, renormalize=False)), "it matters here"
    save_marian(ours, tmp_path / "saved", config)
    assert search_config(tmp_path / "saved") == dataclasses.replace(config, batch_size=SearchConfig().batch_size)


def test_settings_of_a_search_are_followed_or_refused(tmp_path):
    base = {"eos_token_id": EOS, "num_beams": 6}
    (tmp_path / "config.json").write_text(json.dumps(base))
    for changes, expected in (
        ({}, SearchConfig(num_beams=6, forced_eos=False)),
        ({"length_penalty": 0.0}, SearchConfig(length_penalty=0.0, forced_eos=False)),
        ({"max_new_tokens": 20, "max_length": 7}, SearchConfig(max_length=21, forced_eos=False)),
        ({"suppress_tokens": [3], "bad_words_ids": [[PAD]]}, SearchConfig(banned=(PAD, 3), forced_eos=False)),
        ({"do_sample": False, "min_length": 0, "forced_eos_token_id": EOS}, SearchConfig()),
    ):
        (tmp_path / "generation_config.json").write_text(json.dumps(changes))
        assert search_config(tmp_path) == expected
    for name, value in (
        ("no_repeat_ngram_size", 3),
        ("repetition_penalty", 1.2),
        ("min_length", 5),
        ("do_sample", True),
        ("forced_eos_token_id", 7),
        ("early_stopping", "never"),
    ):
        (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
        with pytest.raises(ValueError, match=f"sets {name}={value!r}"):
            search_config(tmp_path)


@pytest.mark.slow
def test_a_sentence_does_not_depend_on_its_batch(pair, sources):
    _, folder, ours = pair
    searcher = Searcher(ours)
    config = dataclasses.replace(search_config(folder), num_beams=4)
    whole = searcher(sources, dataclasses.replace(config, batch_size=8))
    assert searcher(sources[::-1], dataclasses.replace(config, batch_size=8))[::-1] == whole
    assert searcher(sources[:6], dataclasses.replace(config, batch_size=2)) == whole[:6]


def test_a_saved_folder_loads_in_transformers_and_searches_alike(pair, sources, tmp_path):
    model, folder, ours = pair
    config = search_config(folder)
    save_marian(ours, tmp_path / "saved", config)
    again, info = transformers.MarianMTModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert search_config(tmp_path / "saved") == config
    assert reference(again.eval(), sources[:6], 4) == reference(model, sources[:6], 4)


def test_sources_that_cannot_be_read_are_one_line(pair):
    _, _, ours = pair
    searcher = Searcher(ours)
    for source, message in (
        ([], "has 0 tokens"),
        ([1] * 200, "expected 1 to 96"),
        ([VOCAB], "outside of the vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            searcher([source], SearchConfig())
    assert searcher([], SearchConfig()) == []


@pytest.fixture(scope="module")
def translator_folder(pair, tmp_path_factory):
    """The tiny model's weights under a vocabulary of two SentencePiece models, as transformers saves them."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("translator")
    lines = ["the keeper opens the gate", "a boat waits at the gate", "the water is high", "nobody waits there"] * 9
    for side, text in (("source", lines), ("target", [line.upper() for line in lines])):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_prefix=str(folder / side),
            vocab_size=30,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
    models = [
        sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm")) for side in ("source", "target")
    ]
    pieces = [model.id_to_piece(number) for model in models for number in range(3, model.vocab_size())]
    vocab = [*["</s>", "<unk>", *dict.fromkeys(pieces), *"0123456789"][: VOCAB - 1], "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(vocab)}))
    assert len(vocab) == VOCAB
    for file in pair[1].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_translator_reads_and_writes_as_transformers_does(pair, translator_folder):
    theirs = transformers.MarianTokenizer(
        source_spm=str(translator_folder / "source.spm"),
        target_spm=str(translator_folder / "target.spm"),
        vocab=str(translator_folder / "vocab.json"),
    )
    spec = MarianTranslator(checkpoint=str(translator_folder), source="en", target="xx", num_beams=4, batch_size=8)
    translator = spec.build()
    sentences = ["the gate opens at 12", "a high boat", "THE KEEPER waits"]
    ids = [theirs(sentence)["input_ids"] for sentence in sentences]
    assert [translator.tokenizer.encode(sentence) for sentence in sentences] == ids
    wanted = [theirs.decode(tokens, skip_special_tokens=True) for tokens in reference(pair[0], ids, 4)]
    assert translator.translate([sentences[0], "", sentences[1], "a" * 4000, sentences[2]]) == [
        wanted[0],
        "",
        wanted[1],
        "",
        wanted[2],
    ]
    assert spec.inputs_key() == MarianTranslator(checkpoint=str(translator_folder), source="a", target="b").inputs_key()


def test_a_target_language_in_front_is_one_token_as_in_transformers(pair, translator_folder, tmp_path):
    for file in translator_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    first, second = list(vocab)[50:52]
    vocab = {{first: ">>fra<<", second: ">>zlm_Latn<<"}.get(piece, piece): number for piece, number in vocab.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    theirs = transformers.MarianTokenizer(*(str(tmp_path / n) for n in ("source.spm", "target.spm", "vocab.json")))
    spec = MarianTranslator(checkpoint=str(tmp_path), source="en", target="fr", num_beams=2, prefix=">>fra<< ")
    translator = spec.build()
    for text in (">>fra<< the gate opens", ">>zlm_Latn<<a boat", "a boat >>fra<< waits"):
        assert translator.tokenizer.encode(text) == theirs(text)["input_ids"]
    (ids,) = [theirs(">>fra<< the gate opens")["input_ids"]]
    assert ids[0] == vocab[">>fra<<"]
    (wanted,) = reference(pair[0], [ids], 2)
    assert translator.translate(["the gate opens"]) == [theirs.decode(wanted, skip_special_tokens=True)]
    with pytest.raises(ValueError, match="no target '>>deu<<' in this translator: it has >>fra<<, >>zlm_Latn<<"):
        dataclasses.replace(spec, prefix=">>deu<< ").build()


def test_the_hub_gives_a_translator_with_its_sentencepiece_models(translator_folder, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: hf: locations not tested")

    def download(repository, *, revision, allow_patterns, **_):
        """A snapshot, as far as the real one's file patterns go."""
        copy = tmp_path / repository.replace("/", "--")
        copy.mkdir(exist_ok=True)
        for file in translator_folder.iterdir():
            pickled = "pickled" in repository and file.suffix == ".safetensors"
            if any(file.match(pattern) for pattern in allow_patterns) and not pickled:
                (copy / file.name).write_bytes(file.read_bytes())
        return str(copy)

    monkeypatch.setattr(hub, "snapshot_download", download)
    spec = MarianTranslator(checkpoint="hf:Helsinki-NLP/opus-mt-en-fr", source="en", target="fr", num_beams=1)
    assert len(spec.build().translate(["the gate opens", "a boat"])) == 2
    with pytest.raises(ValueError, match=r"has no \.safetensors: pickles such as pytorch_model\.bin"):
        dataclasses.replace(spec, checkpoint="hf:Helsinki-NLP/pickled").build()


def test_a_folder_without_its_tokenizer_is_refused(pair):
    with pytest.raises(ValueError, match=r"lacks source\.spm, target\.spm, vocab\.json"):
        MarianTranslator(checkpoint=str(pair[1]), source="en", target="fr").build()


def test_only_marian_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="translators are read of marian"):
        load_marian(tmp_path)

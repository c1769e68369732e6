"""Decoding: batches, chunks, refills and buckets change the speed, never the text."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, models

from models import decode_rows
from models.checkpoints.tokenizer import TextTokenizer
from models.config import Embedding
from models.decode import DecodeConfig, Decoder, generate, stream
from models.generation import generate_texts, stream_text, text_after
from models.sampling import SamplingConfig, filtered, penalised, sample
from tests.models.checkpoint_cases import VOCAB, byte_tokenizer, tiny_model

PROMPTS = [[1, 5, 9], [1, 7], [1, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60], [1, 9, 9, 9, 30]]
DRAWN = SamplingConfig(temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.2, seed=7)
GREEDY = DecodeConfig(max_new_tokens=12, batch_size=4, chunk=5)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def decoder(model):
    return Decoder(model)


@pytest.fixture(scope="module")
def greedy(decoder):
    return generate(decoder, PROMPTS, GREEDY)


def test_greedy_decoding_equals_the_full_forward(model, greedy):
    graph, state = nnx.split(model)

    @jax.jit
    def logits(state, ids, segments):
        model = nnx.merge(graph, state)
        return model.logits(model(ids, segments, jnp.arange(ids.shape[1])[None]))

    for prompt, found in zip(PROMPTS, greedy):
        assert len(found.ids) == 12 and found.reason == "length"
        whole = np.zeros((1, 32), np.int32)
        whole[0, : len(prompt) + 12] = [*prompt, *found.ids]
        best = np.argmax(logits(state, whole, (np.arange(32)[None] < len(prompt) + 12).astype(np.int32)), axis=-1)[0]
        assert tuple(best[len(prompt) - 1 : len(prompt) + 11]) == found.ids


def test_the_text_depends_on_seed_and_request_alone(decoder, greedy):
    """Not on the batch size or the chunk: with fewer rows than prompts, rows are refilled."""
    assert generate(decoder, PROMPTS, replace(GREEDY, batch_size=2)) == greedy
    drawn = replace(GREEDY, sampling=DRAWN)
    whole = generate(decoder, PROMPTS, drawn)
    assert generate(decoder, PROMPTS, replace(drawn, batch_size=1, chunk=4)) == whole
    assert generate(decoder, PROMPTS, drawn) == whole
    same_prompt = generate(decoder, [PROMPTS[0]] * 4, drawn)
    assert len(set(same_prompt)) > 1, "requests draw from keys of their own"


def test_stop_ids_end_a_text_and_are_not_part_of_it(decoder, greedy):
    stop = greedy[0].ids[4]
    first = greedy[0].ids.index(stop)
    found = generate(decoder, PROMPTS[:1], replace(GREEDY, stop_ids=(stop,)))[0]
    assert found.ids == greedy[0].ids[:first] and found.reason == "stop"


def test_generation_ends_where_the_context_does(model):
    short = tiny_model(embedding=Embedding(tied=True, max_positions=16))
    found = generate(short, [[1] * 12, [1, 2]], replace(GREEDY, max_new_tokens=9))
    assert [(len(g.ids), g.reason) for g in found] == [(4, "context"), (9, "length")]


def test_long_generations_compile_nothing_new(decoder):
    config = replace(GREEDY, max_new_tokens=30, batch_size=2)
    generate(decoder, PROMPTS, config)
    compiled = {"prefill": decode_rows.prefill, "chunk": decode_rows.compiled_chunk(), "insert": decode_rows.insert}
    before = {name: function._cache_size() for name, function in compiled.items()}
    generate(decoder, [[1, 3], [1, 4, 8], *PROMPTS], config)
    assert before == {name: function._cache_size() for name, function in compiled.items()}


def test_a_prompt_longer_than_a_prefill_piece_reads_the_same(decoder, monkeypatch):
    prompt = [1, *(np.arange(90) % 200 + 3).tolist()]
    config = replace(GREEDY, max_new_tokens=4, batch_size=2)
    whole = generate(decoder, [prompt, [1, 2, 3]], config)
    monkeypatch.setattr(decode_rows, "PREFILL_TOKENS", 32)
    assert generate(decoder, [prompt, [1, 2, 3]], config) == whole


def test_rows_refill_while_others_go_on(decoder):
    """Two rows, a long first request: the short ones behind it end before it does."""
    config = replace(GREEDY, batch_size=2, chunk=2)
    stop_after_two = lambda request, ids: request != 0 and len(ids) >= 2  # noqa: E731
    ends = [event.request for event in stream(decoder, PROMPTS, config, stop_after_two) if event.reason is not None]
    assert ends == [1, 2, 3, 0]


def test_texts_end_before_stop_strings_and_stream_in_pieces(decoder):
    tokenizer = byte_tokenizer()
    config = replace(GREEDY, max_new_tokens=12, batch_size=2)
    whole = generate_texts(decoder, tokenizer, ["ab", "hello"], config)
    stop = whole[0][5:7]
    cut = generate_texts(decoder, tokenizer, ["ab", "hello"], replace(config, stop_strings=(stop,)))
    assert cut[0] == whole[0][: whole[0].index(stop)]
    pieces = list(stream_text(decoder, tokenizer, "ab", replace(config, stop_strings=(stop,))))
    assert "".join(pieces) == cut[0]
    assert "".join(stream_text(decoder, tokenizer, "hello", config)) == whole[1]


def stripping_tokenizer(*, words: bool = False) -> TextTokenizer:
    """As Llama 2's: "▁" stands for a space, and the decoder drops the one that a text begins with."""
    rest = "▁word{:02X}" if words else "<0x{:02X}>"
    pieces = ["<unk>", "<s>", "</s>", "▁it", "▁is", "▁Paris", ".", *map(rest.format, range(256))]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return TextTokenizer(backend=backend, bos_id=1, eos_id=2, pad_id=None, stop_ids=(2,))


@pytest.mark.parametrize("length", [2, 200], ids=["short prompt", "long prompt"])
def test_the_space_between_a_prompt_and_its_continuation_is_kept(length):
    it, is_, paris, dot, bytes_of = 3, 4, 5, 6, lambda text: [7 + byte for byte in text.encode()]
    tokenizer = stripping_tokenizer()
    assert tokenizer.decode([paris, dot]) == "Paris."  # alone it loses its space
    assert text_after(tokenizer, [1, it, *[is_] * length])([paris, dot]) == " Paris."
    assert text_after(tokenizer, [1])([paris, dot]) == "Paris."  # nothing stands before it
    assert text_after(tokenizer, [1, *[2] * length])([paris, dot]) == "Paris."  # special tokens alone are no text
    text = text_after(tokenizer, [1, it, *bytes_of("日" * length)[:-1]])  # a prompt that ends inside of a character
    assert text(bytes_of("日")[-1:]) == "日" and text([*bytes_of("日")[-1:], paris]) == "日 Paris"


def test_the_stream_of_a_stripping_tokenizer_is_its_text(model):
    """Its whole text is that of prompt and new ids together, as it is where they come in pieces."""
    tokenizer, prompt = stripping_tokenizer(words=True), [1, 3, 4]
    for seed in range(3):
        drawn = replace(GREEDY, sampling=replace(DRAWN, seed=seed), chunk=2)
        ids = generate(model, [prompt], replace(drawn, stop_ids=(2,)))[0].ids
        whole = generate_texts(Decoder(model), tokenizer, [prompt], drawn)[0]
        assert "it is" + whole == tokenizer.decode([*prompt, *ids])
        assert "".join(stream_text(Decoder(model), tokenizer, prompt, drawn)) == whole


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([[]], "empty"), ([[1] * 300], "context 256"), ([[1, VOCAB]], f"vocabulary {VOCAB}")],
    ids=["empty", "longer than the context", "unknown id"],
)
def test_prompts_that_cannot_be_decoded_are_refused(decoder, prompts, message):
    with pytest.raises(ValueError, match=message):
        generate(decoder, prompts, GREEDY)


def test_filters_keep_the_tokens_that_they_name():
    probs = np.array([[0.4, 0.3, 0.15, 0.1, 0.05]], np.float32)
    logits = jnp.log(probs)
    kept = lambda **settings: int(  # noqa: E731
        np.sum(np.asarray(filtered(logits, SamplingConfig(temperature=1.0, **settings))) > -1e20)
    )
    assert kept() == 5 and kept(top_k=2) == 2 and kept(top_p=0.75) == 3 and kept(min_p=0.3) == 3
    seen = jnp.asarray([[True, False, False, False, True]])
    expected = np.where([1, 0, 0, 0, 1], np.log(probs) * 2.0, np.log(probs))
    np.testing.assert_allclose(penalised(logits, seen, 2.0), expected, rtol=1e-6)
    rows = jnp.repeat(logits, 4000, axis=0)
    drawn = sample(rows, SamplingConfig(temperature=1.0), jnp.arange(4000), jnp.zeros(4000, jnp.int32))
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 4000, probs[0], atol=0.03)

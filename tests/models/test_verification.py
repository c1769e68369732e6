"""The parity certificate sees the bugs that perplexity does not."""

import json

import numpy as np
import pytest

from models.parity import GATES, compare
from models.verify import comparison_ids, run
from tests.models.checkpoint_cases import save_tiny, tiny_config


def _logits(tokens: int = 50, vocabulary: int = 30) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((tokens, vocabulary)).astype(np.float32) * 3


def test_equal_logits_pass_and_a_shifted_distribution_does_not():
    ids, logits = np.arange(50) % 30, _logits()
    same = compare(logits, logits, ids, "float32")
    assert same.max_logit_difference == same.max_kl == 0.0 and same.argmax_agreement == 1.0 and not same.failures
    other = compare(logits + 0.01 * np.random.default_rng(1).standard_normal(logits.shape), logits, ids, "float32")
    assert len(other.failures) == len(GATES["float32"])
    assert other.as_json()["passed"] is False


def test_kl_and_perplexity_are_what_their_formulas_say():
    ids, reference = np.array([0, 1, 0]), np.log(np.array([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]))
    ours = np.log(np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]])) + 7.0  # a constant changes no probability
    found = compare(ours.astype(np.float32), reference.astype(np.float32), ids, "float32")
    assert found.max_kl == pytest.approx(0.25 * np.log(0.5) + 0.75 * np.log(1.5), rel=1e-5)
    assert found.reference_perplexity == pytest.approx(np.exp(-(np.log(0.5) + np.log(0.25)) / 2), rel=1e-5)
    assert found.perplexity == pytest.approx(2.0, rel=1e-5)


def test_not_a_number_never_passes():
    ids, logits = np.arange(50) % 30, _logits()
    assert compare(np.full_like(logits, np.nan), logits, ids, "float32").failures


def test_a_text_that_is_too_short_is_refused(tmp_path):
    from models.checkpoints.load import load_checkpoint

    save_tiny(tmp_path)
    with pytest.raises(ValueError, match="at least 256"):
        comparison_ids(load_checkpoint(tmp_path), "short")
    assert tiny_config().embedding.max_positions == 256


@pytest.mark.slow
def test_the_command_certifies_a_folder(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed: the certificate is not tested")
    save_tiny(tmp_path)
    assert run(["--checkpoint", str(tmp_path), "--dtype", "float32"]) == 0
    assert '"passed": true' in capsys.readouterr().out
    monkeypatch.setitem(GATES, "bfloat16", {"max_kl": 1e-9})
    assert run(["--checkpoint", str(tmp_path)]) == 1, "a gate that is missed is told"
    found = json.loads((tmp_path / "parity.json").read_text())
    assert found["float32"]["passed"] and not found["bfloat16"]["passed"] and not found["passed"]
    assert "FAILED: max_kl" in capsys.readouterr().out

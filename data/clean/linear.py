"""The model behind `python -m data.classifier`: hashed n-grams into a linear model, stored as plain arrays.

The recipe is fastText's (Joulin et al. 2016): word n-grams and character n-grams hashed into buckets, one weight each;
it is how DCLM (Li et al. 2024) chose its pages. Here the weights come from logistic regression on length-normalised
counts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from scipy import optimize, sparse

from data.tables import atomic_path

VERSION = 1
_WORD = re.compile(r"\w+")
_HELD_OUT = 10  # one text in so many


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """buckets: weights, a power of two. word_ngrams: up to how many words. char_ngrams: (shortest, longest)."""

    buckets: int = 1 << 18
    word_ngrams: int = 2
    char_ngrams: tuple[int, int] = (3, 5)
    penalty: float = 1e-5  # L2, per text
    steps: int = 60  # of L-BFGS


@dataclass(frozen=True)
class Classifier:
    """probability(text) = sigmoid(sum of weights of its n-grams / their norm + bias)."""

    config: ClassifierConfig
    weights: np.ndarray  # float32 [buckets]
    bias: float

    def __call__(self, text: str) -> float:
        """The probability, from 0 to 1, that a text belongs to the positive class."""
        buckets, values = vectorise(text, self.config)
        return float(1 / (1 + np.exp(-(self.weights[buckets] @ values + self.bias)))) if len(buckets) else 0.5

    def save(self, path: Path) -> None:
        """Write arrays and settings to one .npz file, atomically."""
        config = {name: getattr(self.config, name) for name in ("buckets", "word_ngrams", "char_ngrams")}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, weights=self.weights.astype(np.float16), bias=self.bias, config=np.array(json.dumps(config))
            )


def load_classifier(path: Path) -> Classifier:
    """A classifier from its file; no pickle is read. ValueError in one line for another kind of file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            config = json.loads(str(arrays["config"]))
            weights, bias = arrays["weights"].astype(np.float32), float(arrays["bias"])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: not a classifier file ({error}); make one with python -m data.classifier train"
        ) from None
    made = ClassifierConfig(
        buckets=int(config["buckets"]),
        word_ngrams=int(config["word_ngrams"]),
        char_ngrams=(int(config["char_ngrams"][0]), int(config["char_ngrams"][1])),
    )
    if weights.shape != (made.buckets,):
        raise ValueError(f"{path}: {weights.shape[0]} weights for {made.buckets} buckets")
    return Classifier(made, weights, bias)


def vectorise(text: str, config: ClassifierConfig) -> tuple[np.ndarray, np.ndarray]:
    """(buckets int64, values float32) of a text: log counts of its n-grams, scaled to length one."""
    words = _WORD.findall(text.lower())
    grams: list[str] = []
    for n in range(1, config.word_ngrams + 1):
        grams.extend(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    short, long = config.char_ngrams
    for word in set(words) if long else ():
        framed = f"<{word[:64]}>"
        for n in range(short, long + 1):
            grams.extend(f"_{framed[i : i + n]}" for i in range(len(framed) - n + 1))
    counts = Counter(xxhash.xxh3_64_intdigest(gram.encode()) % config.buckets for gram in grams)
    buckets = np.fromiter(counts.keys(), np.int64, len(counts))
    values = np.log1p(np.fromiter(counts.values(), np.float32, len(counts)))
    norm = float(np.sqrt(values @ values)) or 1.0
    return buckets, (values / norm).astype(np.float32)


def train(positive: Sequence[str], negative: Sequence[str], config: ClassifierConfig | None = None) -> Classifier:
    """Fit the weights; classes weigh the same however many texts each has. ValueError where one is empty."""
    config = config or ClassifierConfig()
    if not positive or not negative:
        raise ValueError(f"expected texts of both classes, got {len(positive)} positive and {len(negative)} negative")
    matrix = _matrix([*positive, *negative], config)
    labels = np.concatenate((np.ones(len(positive)), np.zeros(len(negative))))
    shares = np.where(labels == 1, 0.5 / len(positive), 0.5 / len(negative))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        logits = matrix @ weights + bias
        value = shares @ (np.logaddexp(0, logits) - labels * logits) + 0.5 * config.penalty * weights @ weights
        slope = shares * (1 / (1 + np.exp(-logits)) - labels)
        return value, np.append(matrix.T @ slope + config.penalty * weights, slope.sum())

    start = np.zeros(config.buckets + 1)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": config.steps})
    return Classifier(config, found.x[:-1].astype(np.float32), float(found.x[-1]))


def _matrix(texts: Sequence[str], config: ClassifierConfig) -> sparse.csr_matrix:
    rows = [vectorise(text, config) for text in texts]
    starts = np.concatenate(([0], np.cumsum([len(buckets) for buckets, _ in rows])))
    columns = np.concatenate([buckets for buckets, _ in rows])
    values = np.concatenate([values for _, values in rows])
    return sparse.csr_matrix((values, columns, starts), shape=(len(texts), config.buckets))


def held_out(text: str) -> bool:
    """Whether a text is kept from training, by its hash: the same on every machine."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace")) % _HELD_OUT == 0


def evaluate(classifier: Classifier, positive: Sequence[str], negative: Sequence[str]) -> str:
    """Precision and recall at five thresholds, and how often a text of each score range is positive."""
    scores = np.array([classifier(text) for text in (*positive, *negative)])
    labels = np.concatenate((np.ones(len(positive)), np.zeros(len(negative))))
    lines = [f"held out: {len(positive)} positive, {len(negative)} negative", "threshold  precision  recall"]
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.9):
        chosen = scores >= threshold
        hits = float(labels[chosen].sum())
        precision = f"{hits / chosen.sum():9.3f}" if chosen.any() else "        -"
        lines.append(f"{threshold:9.1f}  {precision}  {hits / max(1, len(positive)):6.3f}")
    lines.append("score      texts  of which positive")
    for low in np.arange(0, 1, 0.1):
        inside = (scores >= low) & (scores < low + 0.1 if low < 0.9 else scores <= 1)
        share = f"{labels[inside].mean():.3f}" if inside.any() else "-"
        lines.append(f"{low:.1f}-{low + 0.1:.1f}  {int(inside.sum()):7d}  {share}")
    return "\n".join(lines)

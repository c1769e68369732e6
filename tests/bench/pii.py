"""Precision and recall of personal-data detection by kind, and its speed: `python -m tests.bench.pii [--values N]`.

Generated: N values of each kind (from Faker, whose formats are its own, in twelve locales) are set between sentences of
real text, half of them after a word that announces them, together with as many hard negatives: order numbers, versions,
dates, hashes, ISBNs, prices, coordinates. A span found anywhere that touches no value of its kind is a false one.
Labelled: pii/labelled-500.json below SLUICE_REAL_DATA, and Presidio's own recognisers on the same texts where
SLUICE_PRESIDIO_PYTHON names an interpreter that has presidio-analyzer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from faker import Faker

from data.clean.pii import find_personal_data
from tests.bench.clean import english_documents

KINDS = ("email", "ip", "card", "iban", "phone")
LABELS = {
    "EMAIL_ADDRESS": "email",
    "IP_ADDRESS": "ip",
    "IBAN_CODE": "iban",
    "CREDIT_CARD": "card",
    "PHONE_NUMBER": "phone",
}
LOCALES = ["en_US", "en_GB", "fr_FR", "de_DE", "it_IT", "es_ES", "nl_NL", "pl_PL", "sv_SE", "en_AU", "pt_BR", "en_IN"]
LEADS = {
    "email": ("Write to", "E-mail:", "contact", "", "", ""),
    "ip": ("The host is", "from address", "ping", "", "", ""),
    "card": ("Card number", "paid with", "card:", "", "", ""),
    "iban": ("IBAN", "Transfer to", "account", "", "", ""),
    "phone": ("Call", "Phone:", "my mobile is", "", "", ""),
}
PRESIDIO = """
import json, sys, warnings
warnings.filterwarnings("ignore")
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer, EmailRecognizer, IbanRecognizer, IpRecognizer, PhoneRecognizer)
kinds = {"card": (CreditCardRecognizer, "CREDIT_CARD"), "email": (EmailRecognizer, "EMAIL_ADDRESS"),
         "iban": (IbanRecognizer, "IBAN_CODE"), "ip": (IpRecognizer, "IP_ADDRESS"),
         "phone": (PhoneRecognizer, "PHONE_NUMBER")}
made = {kind: (make(), entity) for kind, (make, entity) in kinds.items()}
out = []
for text in json.load(sys.stdin):
    out.append([[kind, r.start, r.end] for kind, (recognizer, entity) in made.items()
                for r in recognizer.analyze(text, [entity], None) or []])
json.dump(out, sys.stdout)
"""
Gold = list[tuple[str, int, int]]


def generated(count: int, sentences: Sequence[str], seed: int = 0) -> list[tuple[str, Gold]]:
    """`count` texts for each kind with one value each, and `count` with a hard negative."""
    rng = random.Random(seed)
    Faker.seed(seed)
    fakers = [Faker(locale) for locale in LOCALES]
    makers: dict[str, Callable[[], str]] = {
        "email": lambda: rng.choice(fakers).email(),
        "ip": lambda: fakers[0].ipv6() if rng.random() < 0.3 else fakers[0].ipv4_public(),
        "card": lambda: grouped(fakers[0].credit_card_number(), rng),
        "iban": lambda: grouped(rng.choice(fakers).iban(), rng),
        "phone": lambda: rng.choice(fakers).phone_number(),
    }
    texts: list[tuple[str, Gold]] = []
    for kind in KINDS:
        for _ in range(count):
            value, lead = makers[kind](), rng.choice(LEADS[kind])
            before, after = rng.choice(sentences), rng.choice(sentences)
            start = f"{before} {lead} ".replace("  ", " ")
            text = f"{start}{value}{rng.choice(['.', ',', ' and', ')'])} {after}"
            texts.append((text, [(kind, len(start), len(start) + len(value))]))
    negatives = ((f"{rng.choice(sentences)} {hard_negative(rng)}, {rng.choice(sentences)}", []) for _ in range(count))
    return [*texts, *negatives]


def grouped(value: str, rng: random.Random) -> str:
    """As it is, or in groups of four with a space."""
    return value if rng.random() < 0.5 else " ".join(value[i : i + 4] for i in range(0, len(value), 4))


def hard_negative(rng: random.Random) -> str:
    """Something that looks like personal data and is none."""
    number = rng.randrange
    return rng.choice(
        (
            lambda: f"order {number(10**9, 10**12)}",
            lambda: f"order number {number(10**15, 10**16)}",
            lambda: f"invoice #{number(10**6, 10**9)}",
            lambda: f"version {number(30)}.{number(30)}.{number(30)}.{number(3000)}",
            lambda: f"release v{number(9)}.{number(20)}.{number(20)}",
            lambda: (
                f"on {number(1990, 2030)}-{number(1, 13):02d}-{number(1, 29):02d} {number(24):02d}:{number(60):02d}:00"
            ),
            lambda: f"between {number(1800, 1950)}-{number(1950, 2025)}",
            lambda: f"on {number(1, 29):02d}/{number(1, 13):02d}/{number(1950, 2030)}",
            lambda: f"commit {number(16**40):040x}",
            lambda: f"digest {number(16**8):08x}-{number(16**4):04x}-{number(16**4):04x}-{number(16**12):012x}",
            lambda: f"ISBN 978-{number(10)}-{number(10000, 99999)}-{number(100, 999)}-{number(10)}",
            lambda: f"for ${number(1, 999)},{number(1000):03d},{number(1000):03d}.{number(100):02d}",
            lambda: f"a population of {number(10**6, 10**9)}",
            lambda: f"at {number(90)}.{number(10**6):06d}, {number(180)}.{number(10**6):06d}",
            lambda: f"icon@{number(2, 4)}x.png",
            lambda: f"@decorator.{rng.choice(['setter', 'getter'])}",
            lambda: f"pages {number(100, 400)}-{number(400, 900)}",
            lambda: f"tracking number {number(10**13, 10**14)}",
            lambda: f"std::{rng.choice(['vector', 'map'])}::size",
            lambda: f"timestamp {number(10**9, 2 * 10**9)}",
        )
    )()


def plain_sentences() -> list[str]:
    """Sentences of real text without "@" and without longer numbers, so that nothing unlabelled hides in them."""
    sentences: dict[str, None] = {}
    for text in english_documents(800):
        for sentence in " ".join(text.split()).split(". "):
            if 40 < len(sentence) < 200 and "@" not in sentence and sum(map(str.isdigit, sentence)) < 4:
                sentences[sentence.strip(".") + "."] = None
    return list(sentences)


def score(gold: Iterable[Gold], found: Iterable[Gold]) -> dict[str, list[float]]:
    """kind -> [precision, recall]; a span counts where it touches one of its kind."""
    hits, golds, founds, true = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for wanted, got in zip(gold, found):
        for kind, start, end in wanted:
            golds[kind] += 1
            hits[kind] += any(k == kind and a < end and start < b for k, a, b in got)
        for kind, start, end in got:
            founds[kind] += 1
            true[kind] += any(k == kind and a < end and start < b for k, a, b in wanted)
    return {
        kind: [round(true[kind] / max(1, founds[kind]), 4), round(hits[kind] / max(1, golds[kind]), 4)]
        for kind in KINDS
    }


def detect(texts: Iterable[str]) -> list[Gold]:
    return [[(s.kind, s.start, s.end) for s in find_personal_data(text)] for text in texts]


def labelled(path: Path) -> list[tuple[str, Gold]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [
        (
            row["full_text"],
            [
                (LABELS[s["entity_type"]], s["start_position"], s["end_position"])
                for s in row["spans"]
                if s["entity_type"] in LABELS
            ],
        )
        for row in rows
    ]


def show(title: str, scores: dict[str, list[float]]) -> None:
    print(title)
    for kind, (precision, recall) in scores.items():
        f1 = 2 * precision * recall / max(1e-9, precision + recall)
        print(f"  {kind:<8} precision {precision:6.3f}   recall {recall:6.3f}   F1 {f1:6.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=2000)
    texts = generated(parser.parse_args().values, plain_sentences())
    scores = score((gold for _, gold in texts), detect(text for text, _ in texts))
    show(f"generated, {len(texts)} texts", scores)
    result: dict[str, object] = dict(scores)
    folder = os.environ.get("SLUICE_REAL_DATA")
    if folder:
        rows = labelled(Path(folder) / "pii" / "labelled-500.json")
        ours = score((gold for _, gold in rows), detect(text for text, _ in rows))
        show(f"labelled, {len(rows)} texts", ours)
        result["labelled"] = ours
        presidio = os.environ.get("SLUICE_PRESIDIO_PYTHON")
        if presidio:
            reply = subprocess.run(
                [presidio, "-c", PRESIDIO], input=json.dumps([t for t, _ in rows]), capture_output=True, text=True
            )
            if reply.returncode:
                raise SystemExit(f"presidio failed: {reply.stderr.strip().splitlines()[-1]}")
            theirs = score((gold for _, gold in rows), json.loads(reply.stdout))
            show("Presidio's recognisers on the same texts", theirs)
            result["presidio"] = theirs
        else:
            result["missing"] = ["presidio"]
    else:
        result["missing"] = ["labelled-500.json", "presidio"]
    documents = english_documents(2000)
    start = time.process_time()
    detect(documents)
    result["docs_per_s"] = round(len(documents) / (time.process_time() - start), 1)
    print(f"speed: {result['docs_per_s']} documents of 1 kB a second")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

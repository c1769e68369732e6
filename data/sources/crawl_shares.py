"""A crawl in shares, by the workers of an engine: each host belongs to one share, and a share to one process at a time.

    python -m data.crawl --config configs/x.py shares=16 'engine=Ray(address="auto", cpus=0.1)'

A share is dealt its hosts by a hash of their names, so the pause between requests to a host holds on the whole cluster
without anybody who watches it: only one process ever asks that host. All shares go on in rounds; between two rounds
links to foreign hosts are handed over as files, and what is left of the limits is dealt anew.

    FOLDER/shares.json                     how many shares there are: with another number, hosts would change hands
    FOLDER/share-00003/                    frontier.sqlite and warc/, those of a crawl of its own
    FOLDER/links/00003/00007-0000.jsonl    for share 3, what share 7 found; deleted when share 3 has it

A share runs in a process of its own below its worker (Twisted's reactor starts once in a process). It survives kill -9
as a whole crawl does: pages in flight are fetched again, links are handed over in the next round. On a cluster FOLDER
is one that all machines see. The pause that a host wants is kept in the frontier and holds from round to round.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from data.engine import LocalPool
from data.sources.crawl_config import CrawlConfig
from data.sources.crawl_frontier import Frontier
from data.tables import atomic_path, write_json
from data.worker import die_with_parent

_CHILD = "from data.sources.crawl_shares import child; child()"

Result = dict[str, Any]  # counts of a share: pages, bytes, queued, failed; reasons; links handed over


def share_of(host: str, shares: int) -> int:
    """The share that owns a host, whatever its port."""
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return xxhash.xxh3_64_intdigest(name.encode("utf-8")) % shares


def crawl_in_shares(config: CrawlConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Crawl until nothing is left or a limit is reached; (counts, reasons) of the whole crawl so far."""
    root = Path(config.folder)
    root.mkdir(parents=True, exist_ok=True)
    _check_number(root, config.shares)
    found = [_before(_folder(root, index)) for index in range(config.shares)]
    active = list(range(config.shares))
    engine = config.engine
    if engine == LocalPool():
        engine = LocalPool(workers=config.shares)  # they wait for servers, not for CPUs
    with engine.session(root.resolve()) as session:
        for number in itertools.count(1):
            pages, size = (_total(found, name) for name in ("pages", "bytes"))
            if not active or pages >= config.max_pages or size >= config.max_bytes:
                break
            rooms = _dealt(config.max_pages - pages, config.max_bytes - size, active)
            work = partial(_run_share, config=_plain(config))
            for index, result in zip(rooms, session.map_shards(work, list(rooms.items()), label=f"round {number}")):
                found[index] = result
            active = [i for i in range(config.shares) if found[i]["queued"] or _letters(root, i)]
            print(f"round {number}: {_total(found, 'pages'):,} pages, {_total(found, 'queued'):,} queued", flush=True)
    counts = {name: _total(found, name) for name in ("pages", "bytes", "queued", "failed")}
    reasons: dict[str, int] = {}
    for result in found:
        for reason, times in result["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + times
    return counts, reasons


def _dealt(pages: int, size: int, active: list[int]) -> dict[int, tuple[int, int]]:
    """{share: (pages, bytes)} that each may fetch; shares for which there is no page are left out."""
    parts = min(len(active), pages)
    return {
        index: (pages // parts + (place < pages % parts), max(size // parts, 1))
        for place, index in enumerate(active[:parts])
    }


def _run_share(task: tuple[int, tuple[int, int]], *, config: dict[str, Any]) -> Result:
    """One round of one share, in a process of its own."""
    order = json.dumps({"config": config, "index": task[0], "pages": task[1][0], "bytes": task[1][1]})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=order, capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode < 0:
        raise OSError(5, f"share {task[0]} was killed by signal {-done.returncode}")  # EIO: tried again
    if done.returncode or not done.stdout.strip():
        raise ValueError(f"share {task[0]}: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def child() -> None:
    """The process of one share: takes its links, crawls, hands over what others own, and prints its counts."""
    threading.Thread(target=die_with_parent, args=(os.getppid(),), daemon=True).start()
    order = json.loads(sys.stdin.read())
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in order["config"].items()
    }
    whole = CrawlConfig(**given)
    root, index = Path(whole.folder), order["index"]
    config = replace(whole, folder=str(_folder(root, index)))
    try:
        print(json.dumps(_crawl_share(config, root, index, order["pages"], order["bytes"])))
    except (ValueError, OSError) as error:
        sys.exit(f"{' '.join(str(error).split())}")


def _crawl_share(config: CrawlConfig, root: Path, index: int, pages: int, size: int) -> Result:
    from data.sources.crawl_process import run_crawl
    from data.sources.crawl_spider import Crawl

    crawl = Crawl(config, owns=lambda host: share_of(host, config.shares) == index, seconds=config.round_seconds)
    crawl.config = replace(config, max_pages=crawl.pages + pages, max_bytes=crawl.bytes + size)
    try:
        for letter in _letters(root, index):
            crawl.frontier.add_all(map(json.loads, letter.read_text(encoding="utf-8").splitlines()))
            letter.unlink()  # what it says is in the frontier now, on disk
        counts, reasons = run_crawl(crawl)
        return {**counts, "reasons": reasons, "links": _hand_over(crawl.frontier, root, index, config.shares)}
    finally:
        crawl.close()


def _hand_over(frontier: Frontier, root: Path, index: int, shares: int) -> int:
    """Write links that others own into files for them; how many. After a kill some are written twice, which is well."""
    from data.sources.crawl_urls import host_of

    letters: dict[int, list[dict[str, Any]]] = {}
    links = frontier.unsent()
    for link in links:
        letters.setdefault(share_of(host_of(link["url"]), shares), []).append(link)
    for other, found in letters.items():
        folder = root / "links" / f"{other:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        number = next(n for n in itertools.count() if not (folder / f"{index:05d}-{n:04d}.jsonl").exists())
        with atomic_path(folder / f"{index:05d}-{number:04d}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(link) + "\n" for link in found), encoding="utf-8")
        frontier.mark_sent([link["url"] for link in found])
    return len(links)


def _letters(root: Path, index: int) -> list[Path]:
    return sorted((root / "links" / f"{index:05d}").glob("*.jsonl"))


def _folder(root: Path, index: int) -> Path:
    return root / f"share-{index:05d}"


def _before(folder: Path) -> Result:
    """What an earlier run of this crawl left of a share."""
    if not (folder / "frontier.sqlite").is_file():
        return {"pages": 0, "bytes": 0, "queued": 0, "failed": 0, "reasons": {}}
    frontier = Frontier(folder / "frontier.sqlite")
    try:
        return {**frontier.counts(), "reasons": frontier.reasons()}
    finally:
        frontier.close()


def _check_number(root: Path, shares: int) -> None:
    """ValueError for a folder whose crawl has another number of shares, or none."""
    note = root / "shares.json"
    if (root / "frontier.sqlite").exists():
        raise ValueError(f"{root} holds a crawl that is not in shares: set shares=1, or another folder")
    if not note.exists():
        write_json(note, shares)
    elif (before := json.loads(note.read_text(encoding="utf-8"))) != shares:
        raise ValueError(
            f"{root} holds a crawl in {before} shares, not {shares}: set shares={before}, or another folder"
        )


def _plain(config: CrawlConfig) -> dict[str, Any]:
    """The settings as JSON values, without the engine, with a folder that does not depend on where one stands."""
    values = asdict(replace(config, folder=str(Path(config.folder).resolve())))
    values.pop("engine")
    return values


def _total(found: list[Result], name: str) -> int:
    return sum(result[name] for result in found)

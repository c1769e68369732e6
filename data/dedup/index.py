"""The index on disk: what near dedup remembers of the documents that it kept.

    manifest.json      format, parameters, and for every file its size and checksum
    NNNNN/             a part: rows.npy ids.npy sources.json (the row table), hashes.npy offsets.npy (sorted shingle
                       hashes), signatures.npy

An index answers only for the parameters that it was made with, and is refused when a file is cut short or changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from data.dedup import minhash, shingles
from data.dedup.rows import ROW, load_array, save_array
from data.tables import write_json

if TYPE_CHECKING:
    from data.dedup.near import NearDedup

VERSION = 1

FORMAT = 1
MANIFEST = "manifest.json"
_FILES = ("rows.npy", "ids.npy", "sources.json", "hashes.npy", "offsets.npy", "signatures.npy")
_BLOCK_BYTES = 1 << 22


def parameters(stage: NearDedup) -> dict[str, Any]:
    """What two runs must share to be compared."""
    return {
        "format": FORMAT,
        "shingle_size": stage.shingles.size,
        "shingle_unit": stage.shingles.unit,
        "num_perm": stage.minhash.num_perm,
        "seed": stage.minhash.seed,
        "bits": stage.minhash.bits,
        "threshold": stage.threshold,
        "bands": list(stage.bands()),
        "hashing": [shingles.VERSION, minhash.VERSION],
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index. Raises ValueError in one line for a folder that is none."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["parameters"], manifest["files"], manifest["parts"]
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no dedup index here (no {MANIFEST}); give the folder index/ of a stage") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not the manifest of a dedup index, or cut short: {error!r}") from error
    return manifest


def open_index(folder: Path, stage: NearDedup) -> list[Path]:
    """The parts of an index after all checks. Raises ValueError for other parameters or a damaged file."""
    manifest = read_manifest(folder)
    here, there = parameters(stage), manifest["parameters"]
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise ValueError(
                f"{folder}: this index was made with {name}={there.get(name)}, the stage has {here.get(name)}: use the "
                "same settings or make the index again"
            )
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        found = path.stat().st_size if path.exists() else None
        if found != size:
            what = "missing" if found is None else f"{found} bytes instead of {size}"
            raise ValueError(f"{path}: {what}: the index is cut short; copy it again or make it again")
        if _checksum(path) != digest:
            raise ValueError(f"{path}: its checksum differs from the manifest's: the index is damaged; make it again")
    return [folder / name for name in manifest["parts"]]


def seal(folder: Path, parts: list[str], stage: NearDedup) -> None:
    """Write the manifest, last of all."""
    files = {
        f"{part}/{name}": [(folder / part / name).stat().st_size, _checksum(folder / part / name)]
        for part in parts
        for name in _FILES
    }
    documents = sum(len(load_array(folder / part / "rows.npy")) for part in parts)
    write_json(
        folder / MANIFEST,
        {"parameters": parameters(stage), "parts": parts, "documents": documents, "files": files},
    )


def save_part(scan: Path, folder: Path, gone: np.ndarray) -> int:
    """Write the part of one scanned shard without the rows in `gone`; the number of its documents."""
    offsets = load_array(scan / "offsets.npy")
    sizes = np.diff(offsets)
    stay = sizes > 0  # documents without shingles are dropped as well
    stay[gone] = False
    rows = np.array(load_array(scan / "rows.npy"))
    ids = load_array(scan / "ids.npy")
    lengths = np.diff(np.concatenate(([0], rows["id_end"])))
    kept = rows[stay]
    kept["id_end"] = np.cumsum(lengths[stay])
    save_array(folder / "rows.npy", kept.astype(ROW))
    save_array(folder / "ids.npy", np.asarray(ids)[np.repeat(stay, lengths)])
    save_array(folder / "hashes.npy", np.asarray(load_array(scan / "hashes.npy"))[np.repeat(stay, sizes)])
    save_array(folder / "offsets.npy", np.concatenate(([0], np.cumsum(sizes[stay]))))
    save_array(folder / "signatures.npy", np.asarray(load_array(scan / "signatures.npy"))[stay])
    write_json(folder / "sources.json", json.loads((scan / "sources.json").read_text(encoding="utf-8")))
    return len(kept)


def load_part(part: Path) -> tuple[np.ndarray, np.ndarray]:
    """(signatures, hashes of the ids) of one part."""
    ends = load_array(part / "rows.npy")["id_end"].tolist()
    text = memoryview(np.asarray(load_array(part / "ids.npy")).tobytes())
    hashes = [xxhash.xxh3_64_intdigest(text[start:end]) for start, end in zip([0, *ends], ends)]
    return np.asarray(load_array(part / "signatures.npy")), np.array(hashes, np.uint64)


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()

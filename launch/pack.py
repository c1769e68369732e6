"""Packs the code of this repository: what git tracks or would add, changes included.

python -m launch.pack FILE.tar.gz
"""

import subprocess
import sys
import tarfile
from pathlib import Path


def code_files(root: Path) -> list[str]:
    """Paths of the code, relative to the root: tracked, and untracked that git does not ignore.

    Raises:
      ValueError: the folder is no git repository.
    """
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{root} cannot be packed: {done.stderr.strip()}; run from the root of the repository")
    return sorted(name for name in done.stdout.split("\0") if name and (root / name).is_file())


def pack(root: Path, target: Path) -> int:
    """Writes the code as a .tar.gz, whole or not at all; returns the number of files."""
    names = code_files(root)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with tarfile.open(partial, "w:gz") as archive:
        for name in names:
            archive.add(root / name, arcname=name, recursive=False)
    partial.rename(target)
    return len(names)


def main() -> None:
    """The command."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        sys.exit(0 if sys.argv[1:] in (["--help"], ["-h"]) else 2)
    try:
        print(f"packed {pack(Path.cwd(), Path(sys.argv[1]))} files into {sys.argv[1]}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

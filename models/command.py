"""What the commands of models and train share: a compile cache, and errors as one line."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

COMPILE_CACHE = "~/.cache/sluice/jax"  # the folder that training uses too


def use_compile_cache(folder: str = COMPILE_CACHE) -> None:
    """Keep compiled programs in a folder between calls, "" for none: a command's second start is seconds faster."""
    import jax

    if not folder:
        return
    jax.config.update("jax_compilation_cache_dir", folder if "://" in folder else str(Path(folder).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """--adapter and --use, for commands that load a checkpoint and may put adapters over it."""
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a PEFT adapter folder over the checkpoint, and your name for it; may be repeated",
    )
    parser.add_argument("--use", metavar="NAME", help="the adapter that acts, or 'base'; default: the first")


def run_command(command: Callable[[list[str]], int]) -> None:
    """Run a command with the arguments of the process; what a person can mend is told in one line, exit code 1.

    With SLUICE_TRACEBACK set, an error shows where it comes from instead.
    """
    try:
        code = command(sys.argv[1:])
    except (ValueError, OSError) as error:
        if os.environ.get("SLUICE_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)

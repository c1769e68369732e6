"""What the commands of this room share: a compile cache, and errors as one line."""

import sys
from collections.abc import Callable
from pathlib import Path

COMPILE_CACHE = "~/.cache/sluice/jax"  # the folder that training uses too


def use_compile_cache(folder: str = COMPILE_CACHE) -> None:
    """Keep compiled programs between calls; the second start of a command is seconds faster."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def run_command(command: Callable[[list[str]], int]) -> None:
    """Run a command with the arguments of the process; what a person can mend is told in one line, exit code 2."""
    try:
        code = command(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)

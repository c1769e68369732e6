"""Train a model: builds the dataset if it is missing, trains, evaluates, samples. Started again, it goes on.

python -m train.main --config configs/quickstart.py
python -m train.main --config configs/quickstart.py train.num_steps=100 "optimizer=AdamW(learning_rate=1e-3)"
"""

import argparse
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from models.command import run_command, use_compile_cache
from train.meeting import STOPPED, join

if TYPE_CHECKING:
    from train.config import Config


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line; `--help` prints it."""
    parser = argparse.ArgumentParser(
        prog="python -m train.main", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="FILE", help="a file in configs/")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="what differs from the config")
    parser.add_argument("--list-configs", action="store_true", help="every config with its first line, and stop")
    parser.add_argument("--print-config", action="store_true", help="the resolved config as JSON, and stop")
    parser.add_argument("--dry-run", action="store_true", help="parameters, shardings, memory, FLOP; makes no arrays")
    parser.add_argument("--compile", metavar="TOPO", help="with --dry-run: compile for v6e:16x16, 2*v5e:4x4, h100:8")
    parser.add_argument("--auto-fit", metavar="TOPO", help="with --dry-run: choose mesh, micro-batch and remat for it")
    parser.add_argument("--profile", metavar="A:B", help="a jax.profiler trace of steps A to B in RUN/profile")
    arguments = parser.parse_intermixed_args(argv)
    if not arguments.config and not arguments.list_configs:
        parser.error("give --config FILE, or --list-configs to see which there are")
    if (arguments.compile or arguments.auto_fit) and not arguments.dry_run:
        parser.error("--compile and --auto-fit go with --dry-run")
    return arguments


def profile_range(text: str | None) -> tuple[int, int] | None:
    """`A:B` as two step numbers."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile {text}: expected A:B with 1 <= A <= B, such as --profile 10:12")
    return int(first), int(last)


def run(argv: list[str]) -> int:
    """The command; errors that a person can mend come as ValueError or OSError."""
    arguments = parse_arguments(argv)
    from train.config import apply_overrides, list_configs, load_config, to_json

    if arguments.list_configs:
        for path, line in list_configs():
            print(f"{path:<40} {line}")
        return 0
    config = apply_overrides(load_config(arguments.config), arguments.overrides)
    profile = profile_range(arguments.profile)
    if arguments.print_config:
        print(json.dumps(to_json(config), indent=1))
        return 0
    from train.agreement import check_mixture

    check_mixture(config.data, config.loader)
    if arguments.dry_run:
        from train.plan import dry_run

        dry_run(config, topology=arguments.compile, auto_fit=arguments.auto_fit)
        return 0
    # A stop during the build exits as a stopped run does; the build goes on from there too. The loop has its own way.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    return train_together(config, profile)


def train_together(config: "Config", profile: tuple[int, int] | None) -> int:
    """Meets the other processes, where there are any, checks what can be checked before compiling, and trains."""
    from train.agreement import check_tokenizer, check_tuning
    from train.distributed import find_place, start_jax
    from train.mirror import kept_with_checkpoints
    from train.preflight import (
        build_together,
        check_code_and_config,
        check_devices,
        check_output,
        output_folders,
        run_folder_held,
    )

    processes = join(find_place(os.environ), config.train.meeting)
    try:
        check_code_and_config(processes, config)
        check_output(processes, output_folders(config))
        with run_folder_held(processes, config), kept_with_checkpoints(processes, config):
            check_tuning(config)
            check_tokenizer(config)
            dataset = build_together(processes, config)
            use_compile_cache(config.train.compilation_cache)
            processes.beat(0, "finding its devices")  # which hangs where those of another host are not there
            start_jax(processes)
            check_devices(processes)
            processes.beat(0, "starting", patience=10.0)
            from train.loop import train

            code = train(config, dataset, profile=profile, processes=processes)
            processes.exchange("end", code)  # process 0 has more to write; jax's service ends with it
    except SystemExit:
        processes.close("it was asked to stop", STOPPED)
        raise
    except (ValueError, OSError) as error:
        processes.close(" ".join(str(error).split()), 1)
        raise
    except Exception as error:
        processes.lost(error)  # ends the process where another one's end is the reason
        raise
    processes.close()
    return code


if __name__ == "__main__":
    run_command(run)

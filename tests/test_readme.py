"""Every command that the README shows is run here, made smaller by overrides where it trains."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = ("data.sources.prose.max_bytes=3000000", "data.sources.code.max_bytes=3000000", "train.num_steps=4")


def commands() -> list[str]:
    """The command lines of the README's code blocks, each without its installation part."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split("&&")[-1].strip() for line in lines if re.search(r"\bpython -m\b", line)]


def test_the_readme_begins_with_its_two_commands():
    assert commands()[:2] == ["python -m train.main --config configs/quickstart.py", "python -m pytest"]


@pytest.mark.slow
def test_every_command_of_the_readme_works(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    for number, command in enumerate(commands()):
        small = [*SMALL, f"data.path={tmp_path / 'dataset'}", f"run_dir={tmp_path / f'run{number}'}"]
        words = shlex.split(command)
        assert words[:2] == ["python", "-m"], command
        if words[2] == "pytest":
            continue  # this very run
        if words[2] == "launch.main" and "tpu-vm" in words:
            words = [*words, "--dry-run"]  # the launch itself needs a pod
        overrides = small if "configs/quickstart.py" in words and "--print-config" not in words else []
        extra = [o for o in overrides if words[2] != "data.main" or o.startswith("data.")]
        done = subprocess.run(
            [sys.executable, *words[1:], *extra], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

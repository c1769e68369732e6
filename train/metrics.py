"""What a run tells: metrics.jsonl, TensorBoard and Weights & Biases; the live line; FLOP per token and MFU.

Names carry units: `loss` (nats a token), `throughput/tokens_per_s`, `heldout/bits_per_byte/SOURCE`. Losses are float32
values written with all their digits, so that two runs can be compared bit by bit.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from models.encoder import AnyModelConfig
from train.step import TrainConfig

# Peak of dense bfloat16 matrix products in FLOP/s of one chip, by a part of jax's device_kind. Sources: NVIDIA's data
# sheets of H100 SXM, H200 SXM and A100 SXM; cloud.google.com/tpu/docs, one page a version (v7x: Ironwood).
PEAK_FLOP_PER_S = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "TPU v7x": 2307e12,
}


def peak_flop_per_s(device_kind: str) -> float | None:
    """Peak of one chip in bfloat16, or None where it is not known (a CPU): then no MFU is printed."""
    return next((peak for name, peak in PEAK_FLOP_PER_S.items() if name.lower() in device_kind.lower()), None)


@dataclass(frozen=True)
class FlopPerToken:
    """Training FLOP of a token, forward and backward, by the two formulas in use (they differ by 9-13 % at 8B, 4096).

    palm: 6 N + 12 L S (heads x head_dim), attention counted over the whole square (Chowdhery et al. 2022, appendix B).
    causal: 6 (N - input embedding) + 6 L S (heads x head_dim), half the square. A tied table is the output matrix too,
    which is multiplied with, so it is not taken off.
    """

    palm: float
    causal: float


def flop_per_token(config: AnyModelConfig, num_params: int, seq_len: int) -> FlopPerToken:
    """For rows of `seq_len` tokens; num_params: all of the model's parameters."""
    square = config.num_layers * seq_len * config.num_heads * config.head_dim
    lookup = 0 if config.embedding.tied else config.vocab_size * config.embed_dim
    return FlopPerToken(palm=6.0 * num_params + 12.0 * square, causal=6.0 * (num_params - lookup) + 6.0 * square)


class MetricsWriter:
    """Appends to RUN/metrics.jsonl, one line a step, and to TensorBoard and Weights & Biases where asked for.

    resume_step: lines after this step are taken off first, because the resumed run writes them again.
    config: JSON values that Weights & Biases shows. silent: writes nothing, as all processes but one do.
    """

    def __init__(
        self, run_dir: Path, options: TrainConfig, *, resume_step: int, config: Mapping[str, Any], silent: bool = False
    ):
        self._silent = silent
        if silent:
            return
        self.path = run_dir / "metrics.jsonl"
        self._open: dict[str, Any] | None = _keep_until(self.path, resume_step)
        self._file = self.path.open("r+b")
        self._place = self._file.seek(0, 2)  # where the open line goes
        if self._open is not None:
            self._place -= len(_encoded(self._open))
        self._tensorboard = _open_tensorboard(run_dir / "tensorboard", resume_step) if options.tensorboard else None
        self._wandb = _open_wandb(options.wandb_project, run_dir, config) if options.wandb_project else None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """{"step": step, name: value, ...}; more values of the last written step join its line.

        A float that is not finite is written as a string ("nan"), because JSON has none.
        """
        if self._silent:
            return
        named = {name: _json_value(value) for name, value in values.items()}
        if self._open is not None and self._open["step"] == step:
            self._open |= named
        else:
            self._place = self._file.seek(0, 2)
            self._open = {"step": step} | named
        self._file.seek(self._place)
        self._file.write(_encoded(self._open))  # longer than what it replaces, and in one piece
        self._file.flush()
        scalars = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self._tensorboard is not None:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def flush(self) -> None:
        """Everything that was written is on disk when this returns."""
        if self._silent:
            return
        os.fsync(self._file.fileno())
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Ends the files."""
        if self._silent:
            return
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Every line of RUN/metrics.jsonl; a last line that a kill cut short is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Clock:
    """Rates since the last logged step; evaluations, saves and the first step's compilation are left out."""

    def __init__(self) -> None:
        self._compiled = False
        self.restart()

    def restart(self) -> None:
        """Counts from here."""
        self._since, self._tokens, self._steps = time.perf_counter(), 0.0, 0

    def add(self, tokens: float) -> tuple[float, float]:
        """(tokens/s, seconds a step) with one more step of so many tokens."""
        self._tokens, self._steps = self._tokens + tokens, self._steps + 1
        seconds = time.perf_counter() - self._since
        rates = (self._tokens / seconds, seconds / self._steps)
        if not self._compiled:
            self._compiled = True
            self.restart()
        return rates


class ProgressLine:
    """The live line: step, loss, tokens/s, MFU, time left. Without a terminal a plain line now and then."""

    def __init__(self, *, start: int, total: int, quiet_seconds: float = 15.0, silent: bool = False):
        self._silent = silent
        self._bar = None
        self._total, self._done, self._start, self._began = total, start, start, time.monotonic()
        self._quiet_seconds, self._printed = quiet_seconds, -math.inf
        if sys.stderr.isatty() and not silent:
            layout = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps{postfix}, {remaining} left"
            self._bar = tqdm(initial=start, total=total, desc="train", bar_format=layout, dynamic_ncols=True)

    def update(self, step: int, text: str) -> None:
        """step: steps done; text: what else to show."""
        self._done, before = step, self._done
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - before)
        elif not self._silent and (time.monotonic() - self._printed >= self._quiet_seconds or step == self._total):
            self._printed = time.monotonic()
            took = self._printed - self._began
            left = took / max(step - self._start, 1) * (self._total - step)
            print(f"step {step}/{self._total}, {text}, {tqdm.format_interval(left)} left", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own above the live one."""
        if not self._silent:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            self._bar.close()


def _keep_until(path: Path, step: int) -> dict[str, Any] | None:
    """Takes off the lines after `step` and a last one that a kill cut short, all at once; returns the last one kept."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in (json.loads(line) for line in lines if line.endswith("\n")) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(map(_encoded, kept)))
    temporary.replace(path)
    return kept[-1] if kept else None


def _encoded(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line) + "\n").encode()


def _json_value(value: Any) -> Any:
    """JSON has no NaN: such a number is written as a string."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _open_tensorboard(folder: Path, resume_step: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)


def _open_wandb(project: str, run_dir: Path, config: Mapping[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError:
        raise ValueError(
            f"train.wandb_project={project!r} needs the package wandb, which is not installed: "
            "pip install wandb, or set train.wandb_project=None"
        ) from None
    wandb.init(project=project, dir=str(run_dir), id=run_dir.name, resume="allow", config=dict(config or {}))
    return wandb

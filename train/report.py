"""What a run leaves for people: the start card, the summary, report.html."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from data.charts import bar_chart, line_chart, page, table
from data.manifest import read_manifest
from data.tables import atomic_path
from models.attention import choose_kernel
from train.config import Config, to_json
from train.cost import attention_shape
from train.evaluation import Score
from train.memory import memory_by_kind
from train.metrics import FlopPerToken, peak_flop_per_s, read_metrics
from train.parameters import base_size, bits_a_weight, trainable_line
from train.state import TrainState

MODEL_KEY, HELD_OUT = "heldout/bits_per_byte", "heldout"
COMPRESSORS = ("gzip", "xz", "gzip_stream", "xz_stream")


def start_card(
    config: Config, mesh: Mesh, abstract: TrainState, flop: FlopPerToken, fill: float, resumed_from: int
) -> str:
    """What was chosen and why, on one screen."""
    model, device = config.model, mesh.devices.flat[0]
    table_size = model.vocab_size * model.embed_dim
    tables = table_size if model.embedding.tied else 2 * table_size
    peak = peak_flop_per_s(device.device_kind)
    axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    tokens = config.loader.seq_len * config.loader.global_batch_size
    kernel = choose_kernel(attention_shape(config, model.pattern[0]), model.execution.kernel)
    peak_text = (
        f"peak {peak / 1e12:g} TFLOP/s bfloat16" if peak else "its peak is not in the table, so no MFU is printed"
    )
    memory = memory_by_kind(config, abstract, mesh.shape)
    bits = bits_a_weight(abstract)
    lines = {
        "run": f"{config.name} in {config.run_dir}"
        + (f", going on after step {resumed_from}" if resumed_from else ", from the start"),
        "model": f"{base_size(abstract):,} parameters, {tables:,} in token tables; {model.num_layers} layers of "
        f"{model.num_heads} heads of {model.head_dim}, {model.num_kv_heads} kv heads",
        "trained": trainable_line(abstract) + (f"; projections rest in {bits:.3f} bits a weight" if bits else ""),
        "precision": f"{model.dtype} products, {model.param_dtype} parameters; norms, softmax and loss in float32",
        "attention": f"{kernel.name}: {kernel.reason}",
        "mesh": f"{axes} on {mesh.size} x {device.device_kind}; {peak_text}",
        "memory": ", ".join(f"{kind} {_bytes(size)}" for kind, size in memory.items()) + " (a device, estimated)",
        "batch": f"{tokens:,} places a step in {config.loader.global_batch_size} rows of {config.loader.seq_len}, "
        f"{config.train.grad_accum_steps} micro-batches, packing fill {fill:.3f}",
        "FLOP": f"{flop.palm:.4g} a token (6 N + 12 L S d), {flop.causal:.4g} causal",
        "steps": f"{config.train.num_steps:,}, {type(config.optimizer).__name__}, {type(config.schedule).__name__}",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def final_values(scores: Mapping[str, Score], compressed: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The line of metrics.jsonl that ends a run: bits per byte of the model and of compressors."""
    values = {f"{MODEL_KEY}/{source}": score.bits_per_byte for source, score in scores.items()}
    for name, by_source in compressed.items():
        values |= {f"heldout/{name}_bits_per_byte/{source}": value for source, value in by_source.items()}
    return values


def final_line(run_dir: Path, last_step: int) -> dict[str, Any] | None:
    """The metrics of the held-out evaluation that ended a run of `last_step` steps; None where it has not ended."""
    lines = [line for line in read_metrics(run_dir) if line["step"] == last_step]
    return next((line for line in reversed(lines) if any("gzip" in name for name in line)), None)


def summary(run_dir: Path, values: Mapping[str, Any]) -> str:
    """One screen: held-out bits per byte of the model beside what gzip and xz need for the same documents."""
    sources = [name.rsplit("/", 1)[1] for name in values if name.startswith(f"{MODEL_KEY}/")]
    lines = []
    for source in sources:
        numbers = {name: values.get(f"heldout/{name}_bits_per_byte/{source}") for name in COMPRESSORS}
        shown = {name: "-" if number is None else f"{number:.3f}" for name, number in numbers.items()}
        lines.append(
            f"held-out bits/byte  {source:<10} model {values[f'{MODEL_KEY}/{source}']:.3f}   "
            f"each alone: gzip {shown['gzip']}, xz {shown['xz']}   "
            f"in one stream: gzip {shown['gzip_stream']}, xz {shown['xz_stream']}"
        )
    logged = [line for line in read_metrics(run_dir) if "loss" in line]
    rate = _median([line["throughput/tokens_per_s"] for line in logged if "throughput/tokens_per_s" in line])
    told = ("loss", "accuracy", "margin", "chosen")  # of sources in which not every token has loss
    for name, value in values.items():
        kind, _, source = name.removeprefix("heldout/").partition("/")
        if name.startswith("heldout/") and kind in told:
            lines.append(f"held-out {kind:<10}  {source:<10} {value:.4f}")
    lines.append("(the compressors at level -9 on the same held-out documents; less is better)")
    lines.append(f"steps {values['step']:,}, last loss {logged[-1]['loss']:.3f} nats a token, {rate:,.0f} tokens/s")
    lines.append(f"samples: {run_dir / 'samples.txt'}    report: {run_dir / 'report.html'}")
    return "\n".join(lines)


def write_report(run_dir: Path, config: Config, dataset: Path) -> Path:
    """RUN/report.html: loss curves, throughput, held-out bits per byte, the data funnel, samples; needs no network."""
    lines = read_metrics(run_dir)
    final = final_line(run_dir, config.train.num_steps)
    sections = [("Summary", f"<pre>{_escape(summary(run_dir, final))}</pre>")] if final else []
    sections.append(("Training loss", _curves(lines, {"loss": "loss"}, "nats a token")))
    by_source = {name: name.rsplit("/", 1)[1] for line in lines for name in line if "bits_per_byte/" in name}
    ours = {name: label for name, label in by_source.items() if name.startswith(f"{MODEL_KEY}/")}
    if ours:
        sections.append(("Held-out bits per byte", _curves(lines, ours, "bits a byte")))
    sections.append(("Throughput", _curves(lines, {"throughput/tokens_per_s": "tokens/s"}, "tokens a second")))
    sections.append(("Gradient norm", _curves(lines, {"gradient_norm": "before clipping"}, "norm", log_y=True)))
    sections.append(("Data funnel", _funnel(dataset)))
    samples = run_dir / "samples.txt"
    if samples.exists():
        sections.append(("Samples", f"<pre>{_escape(samples.read_text(encoding='utf-8'))}</pre>"))
    sections.append(("Config", f"<pre>{_escape(json.dumps(to_json(config), indent=1))}</pre>"))
    path = run_dir / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page(f"Run {config.name}", sections), encoding="utf-8")
    return path


def _curves(lines: list[dict[str, Any]], names: Mapping[str, str], unit: str, *, log_y: bool = False) -> str:
    """A line chart of some metrics over steps; values that are not numbers (a NaN is written as text) are left out."""
    series = {}
    for name, label in names.items():
        told = [line for line in lines if isinstance(line.get(name), int | float)]
        series[label] = ([line["step"] for line in told], [line[name] for line in told])
    return line_chart(series, title="", x_label="step", y_label=unit, log_y=log_y)


def _funnel(dataset: Path) -> str:
    """Documents left after each stage of the dataset's build, and why the others were dropped."""
    stages = read_manifest(dataset)["stages"]
    rows = [
        (stage["name"], *(f"{stage['counts'][kind]:,}" for kind in ("read", "created", "kept", "dropped")))
        for stage in stages
    ]
    reasons: dict[str, int] = {}
    for stage in stages:
        for reason in stage["reasons"]:
            name = f"{reason['step']}: {reason['reason']}"
            reasons[name] = reasons.get(name, 0) + reason["documents"]
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    kept = bar_chart(
        [s["name"] for s in stages], [s["counts"]["kept"] for s in stages], title="", x_label="documents kept"
    )
    html = kept + table(rows, ("stage", "read", "created", "kept", "dropped"))
    return html + (table([(name, f"{count:,}") for name, count in ordered], ("reason", "dropped")) if ordered else "")


def _bytes(size: int | float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

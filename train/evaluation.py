"""Held-out bits per byte for each source, what compressors need for the same documents, and samples."""

import gzip
import lzma
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from data.build import document_shards
from data.heldout_loader import HeldOutRows, open_heldout
from data.loader import LoaderConfig
from data.tables import read_documents
from models.decode import DecodeConfig, generate
from models.sampling import SamplingConfig
from models.scoring import Scorer
from models.sharding import MeshConfig, batch_sharding, make_mesh
from train.distributed import gathered, to_global
from train.state import Params, merge
from train.step import Batch

ALL = "all"  # the name under which all sources together are reported


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and how a run looks at its model.

    every_steps: steps between held-out evaluations; one at the end there is always. at_start: one of the weights that a
    run begins with, too. max_bytes: about so many bytes of held-out text a source in an evaluation during training,
    max_final_bytes in the one at the end; None for all.
    prompts: what the samples continue; sample_tokens: tokens drawn for each; temperature: of the draws, 0 for the
    likeliest token.
    """

    every_steps: int = 500
    at_start: bool = False
    max_bytes: int | None = None
    max_final_bytes: int | None = None
    prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 64
    temperature: float = 0.8

    def __post_init__(self) -> None:
        if self.every_steps < 1 or (self.max_bytes is not None and self.max_bytes < 1):
            raise ValueError(
                f"evaluation.every_steps={self.every_steps} and max_bytes={self.max_bytes} must be at least 1"
            )


@dataclass(frozen=True)
class Score:
    """Nats of all tokens of documents whose cleaned texts have `num_bytes` UTF-8 bytes."""

    nats: float
    num_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Every token counts, the first after BOS and EOS too; NaN where there is no text."""
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else math.nan


def evaluated(
    function: Callable[[Any, Batch], Any], graphdef: nnx.GraphDef, mesh: Mesh
) -> Callable[[Params, Batch], Any]:
    """`function` of (model, batch) as a jitted one of (parameters, batch); its sums are the same on every process."""

    def of_params(params: Params, batch: Batch) -> Any:
        return function(merge(graphdef, params), batch)

    return jax.jit(of_params, out_shardings=NamedSharding(mesh, PartitionSpec()))


def objective_values(
    sums: Callable[[Params, Batch], dict[str, Array]], params: Params, rows: Mapping[str, HeldOutRows], mesh: Mesh
) -> dict[str, float]:
    """What is minimised, on the held-out rows of sources in which not every token has loss: the loss of the answers of
    chats, the accuracy and margin of preferences. Bits per byte are of all tokens, questions and marks too.

    Names: heldout/loss/SOURCE and so on; each the objective's sum over its weight.
    """
    values: dict[str, float] = {}
    sharding = batch_sharding(mesh)
    for source, part in rows.items():
        if not part.weighted:
            continue
        batches = (to_global(batch, sharding, part.rows, part.config.global_batch_size) for batch in part.batches())
        found = jax.device_get([sums(params, batch) for batch in batches])
        total = {name: math.fsum(float(each[name]) for each in found) for name in (found[0] if found else {})}
        weight = total.pop("weight", 0.0)
        values |= {f"heldout/{name}/{source}": value / weight for name, value in total.items() if weight}
    return values


def open_heldout_rows(
    dataset: Path, config: LoaderConfig, max_bytes: int | None = None, places: np.ndarray | None = None
) -> dict[str, HeldOutRows]:
    """The held-out documents by source: each alone from BOS, packed with segment ids, a longer one in windows.

    places: rows of a batch that this process loads (`train.distributed.rows_here`).
    """
    return open_heldout(
        dataset,
        config,
        max_bytes=max_bytes,
        places=places,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def heldout_scores(
    nats: Callable[[Params, Batch], Array], params: Params, rows: Mapping[str, HeldOutRows], mesh: Mesh
) -> dict[str, Score]:
    """The score of every source, and of all of them together where there are several."""
    sharding, scores = batch_sharding(mesh), {}
    for source, part in rows.items():
        sums = [
            nats(params, to_global(batch, sharding, part.rows, part.config.global_batch_size))
            for batch in part.batches()
        ]
        scores[source] = Score(math.fsum(np.asarray(jax.device_get(sums), np.float64).tolist()), part.num_bytes)
    return scores | together(scores)


def heldout_texts(dataset: Path) -> dict[str, list[str]]:
    """The held-out documents of a dataset by source, in its order; ValueError where the folder has none."""
    if not document_shards(dataset):
        raise ValueError(
            f"{dataset} is no dataset: it has no documents/*.parquet; expected a folder that data.main built"
        )
    texts: dict[str, list[str]] = {}
    for shard in document_shards(dataset):
        for document in read_documents(shard):
            if document.meta.get("split") == "heldout":
                texts.setdefault(document.source, []).append(document.text)
    if not texts:
        raise ValueError(f"{dataset} has no held-out documents: its config needs the HeldOut stage")
    return texts


def text_scores(scorer: Scorer, texts: Mapping[str, Sequence[str]]) -> dict[str, Score]:
    """The score of texts by source, by any model: BOS + text + EOS with the scorer's own tokenizer, all tokens counted.

    The same numbers as `heldout_scores` for a run's own model, except of documents longer than a row: those are cut
    there, and read in overlapping windows here.
    """
    tokenizer: Any = scorer.tokenizer
    ends = [token for token in (tokenizer.bos_id, tokenizer.eos_id) if token is not None]
    if not ends:
        raise ValueError("the checkpoint's tokenizer names neither BOS nor EOS: a text's first token has no context")
    scores = {}
    for source, documents in texts.items():
        ids = tokenizer.encode_batch(documents)
        nats, _ = scorer.score_ids([[ends[0], *found, ends[-1]] for found in ids])
        scores[source] = Score(math.fsum(nats), sum(len(text.encode()) for text in documents))
    return scores | together(scores)


def together(scores: Mapping[str, Score]) -> dict[str, Score]:
    """The score of all sources under `ALL`, where there are several."""
    parts = list(scores.values())
    if len(parts) < 2:
        return {}
    return {ALL: Score(math.fsum(part.nats for part in parts), sum(part.num_bytes for part in parts))}


def compressed_scores(dataset: Path, rows: Mapping[str, HeldOutRows]) -> dict[str, dict[str, float]]:
    """Bits per byte of gzip -9 and xz -9 on the same documents, by name of the measure and by source.

    `gzip`, `xz`: each document compressed alone, as the model reads each alone; `gzip_stream`, `xz_stream`: all of them
    in one stream, in the order of the dataset. ALL has the sources together.
    """
    texts = _heldout_texts(dataset, rows)
    if len(texts) > 1:
        texts[ALL] = [text for source in rows for text in texts[source]]
    measures: dict[str, Callable[[Sequence[bytes]], int]] = {
        "gzip": lambda parts: sum(len(gzip.compress(part, 9, mtime=0)) for part in parts),
        "xz": lambda parts: sum(_xz_size(part) for part in parts),
        "gzip_stream": lambda parts: len(gzip.compress(b"".join(parts), 9, mtime=0)),
        "xz_stream": lambda parts: _xz_size(b"".join(parts)),
    }
    alone = {name: {source: measures[name](texts[source]) for source in rows} for name in ("gzip", "xz")}
    stream = {name: {source: measures[name](parts) for source, parts in texts.items()} for name in list(measures)[2:]}
    for sizes in alone.values():
        if ALL in texts:
            sizes[ALL] = sum(sizes.values())
    num_bytes = {source: sum(map(len, parts)) for source, parts in texts.items()}
    return {
        name: {source: 8 * size / num_bytes[source] for source, size in sizes.items() if num_bytes[source]}
        for name, sizes in (alone | stream).items()
    }


def _heldout_texts(dataset: Path, rows: Mapping[str, HeldOutRows]) -> dict[str, list[bytes]]:
    """UTF-8 texts of exactly the documents that the rows hold."""
    source_of = {  # a source here may be one language of the document's
        doc_id: source
        for source, part in rows.items()
        for doc_id in part.reader.doc_ids(source, np.arange(part.num_documents))
    }
    texts: dict[str, list[bytes]] = {source: [] for source in rows}
    for shard in document_shards(dataset):
        for document in read_documents(shard):
            if document.id in source_of:
                texts[source_of[document.id]].append(document.text.encode())
    for source, part in rows.items():
        found = sum(map(len, texts[source]))
        if found != part.num_bytes:
            raise ValueError(
                f"{dataset}: held-out {source} has {found:,} bytes in documents/ but {part.num_bytes:,} in tokens/; "
                "build the dataset again"
            )
    return texts


def _xz_size(data: bytes) -> int:
    """Bytes of `xz -9`. The dictionary is no larger than the data needs: a 64 MiB one is slow to set up each time."""
    largest = 64 << 20  # bytes, the dictionary of preset 9
    dictionary = min(largest, 1 << max(12, (len(data) - 1).bit_length()))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}]
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters))


def draw_samples(graphdef: nnx.GraphDef, params: Params, tokenizer: Any, config: EvaluationConfig, *, seed: int) -> str:
    """Continuations of the prompts, as text for people. The same weights, prompts and seed give the same text.

    tokenizer: a `data.tokenizer.Tokenizer`. Of several processes all call this, and process 0 draws.
    """
    if jax.process_count() > 1:
        params = gathered(params)
        if params is None:
            return "no samples: the model is spread over hosts; python -m models.generate --checkpoint RUN draws some\n"
        if jax.process_index():
            return ""
    with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])) if jax.process_count() > 1 else nullcontext():
        return _drawn(graphdef, params, tokenizer, config, seed)


def _drawn(graphdef: nnx.GraphDef, params: Params, tokenizer: Any, config: EvaluationConfig, seed: int) -> str:
    prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in config.prompts]
    settings = DecodeConfig(
        max_new_tokens=config.sample_tokens,
        stop_ids=(tokenizer.eos_id,),
        sampling=SamplingConfig(temperature=config.temperature, seed=seed),
    )
    parts = []
    for prompt, ids, drawn in zip(config.prompts, prompts, generate(merge(graphdef, params), prompts, settings)):
        text = tokenizer.decode([*ids[1:], *drawn.ids])
        end = " [end of document]" if drawn.reason == "stop" else ""
        parts.append(f"--- prompt {prompt!r}, temperature {config.temperature}\n{text}{end}\n")
    return "\n".join(parts)

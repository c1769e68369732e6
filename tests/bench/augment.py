"""Augmentation: rules on one core, and translation and masked replacement against `transformers` on torch.

    python -m tests.bench.augment [--rounds 3] [--sentences 192] [--texts 192] [--only rules|marian|mlm]

Rules: documents of 1,000 characters (docstrings of the standard library that hold no code, joined), one process; gates
are timed apart, on the same documents and their copies. WordNet and the tagger are loaded before the clock starts.

Models: the same weights on both sides, the same CPU and cores, interleaved, compilation not counted, medians.
Translation is greedy, with a model of the size of opus-mt (6 + 6 layers of 512, 58,101 pieces) made so that it copies
its source: targets are as long as their sources, 6 to 48 pieces in no order. Masked replacement: an encoder of 6 layers
of 384 over 30,522 pieces, 15 % of the words of each text. The peer: padded batches of 16 in the given order, `no_grad`,
all cores; one by one is the seed's way.
"""

import argparse
import ast
import json
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PEER_BATCH = 16
WORDNET = "/usr/share/wordnet"


def documents(count: int, size: int = 1000) -> list[str]:
    """Texts of `size` characters from the docstrings of Python's standard library, the same for one version."""
    parts: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                if len(text) > 120 and not any(sign in text for sign in ("(", "=", "->", ">>>", "_", "`")):
                    parts.append(text)
    text = " ".join(parts)
    return [text[start : start + size] for start in range(0, len(text) - size, size)][:count]


def rate(work: Callable[[], Any], count: int, rounds: int) -> float:
    """Documents a second, the median of some rounds after one that is not counted."""
    work()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return count / statistics.median(seconds)


def interleaved(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each side, each run once before the clock starts, then in turns."""
    for work in sides.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def bench_rules(rounds: int, count: int = 400) -> dict[str, Any]:
    """Documents a second of reordering, synonyms and gates."""
    from data.augment.gates import Gates, Traits
    from data.augment.reorder import Reorder
    from data.augment.synonyms import Synonyms
    from data.augment.technique import Request

    requests = [Request(text, number) for number, text in enumerate(documents(count))]
    count = len(requests)
    reorder = Reorder().build()
    result: dict[str, Any] = {"rules_docs_per_s": rate(lambda: reorder(requests), count, rounds)}
    copies: list[Any] = reorder(requests)
    if Path(WORDNET).is_dir():
        synonyms = Synonyms(wordnet=WORDNET).build()
        result["synonyms_docs_per_s"] = rate(lambda: synonyms(requests), count, rounds)
        copies = synonyms(requests)
    else:
        result["missing"] = ["WordNet"]
    pairs = [(request.text, copy) for request, copy in zip(requests, copies) if isinstance(copy, str)]
    gates = Gates()

    def judge() -> list[Any]:
        return [gates.check(Traits(text, "en"), Traits(copy)) for text, copy in pairs]

    result["gates_docs_per_s"] = rate(judge, len(pairs), rounds)
    result["gates_passed"] = sum(isinstance(verdict, dict) for verdict in judge()) / len(pairs)
    return result


# ------------------------------------------------------------------------------------------------------ translation


def marian_model(torch: Any, transformers: Any, *, layers: int = 6, vocab_size: int = 58101) -> Any:
    """A model of opus-mt's size whose weights make it copy its source, so that targets have the lengths of real ones.

    The last layer attends to the source token at its own position (by 32 frequencies of the positions, alike in every
    head) and hands it on; all other layers add next to nothing, at full cost.
    """
    torch.manual_seed(0)
    pad = vocab_size - 1
    config = transformers.MarianConfig(
        vocab_size=vocab_size,
        d_model=512,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        max_position_embeddings=512,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=pad,
        eos_token_id=0,
        decoder_start_token_id=pad,
        forced_eos_token_id=0,
    )
    model = transformers.MarianMTModel(config)
    quiet = torch.arange(180, 256)  # sines so slow that they are near 0 in a sentence: there the tokens live
    fast = torch.arange(0, 128, 4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "out_proj" in name or "fc2" in name:
                parameter *= 1e-3
        table = model.model.shared.weight
        tokens = torch.randn(vocab_size, len(quiet)) / 512**0.5
        table.zero_()
        table[:, quiet] = tokens
        cross = model.model.decoder.layers[-1].encoder_attn
        for linear in (cross.q_proj, cross.k_proj, cross.v_proj, cross.out_proj):
            linear.weight.zero_()
        for head in range(8):
            for linear in (cross.q_proj, cross.k_proj):
                linear.weight[head * 64 + torch.arange(32), fast] = 12.0
                linear.weight[head * 64 + 32 + torch.arange(32), 256 + fast] = 12.0
        cross.v_proj.weight[quiet, quiet] = 1.0
        cross.out_proj.weight[quiet, quiet] = 24.0
    model.generation_config.bad_words_ids = [[pad]]
    return model.eval()


def bench_marian(rounds: int, sentences: int, max_length: int = 97) -> dict[str, Any]:
    """Batched greedy translation against transformers, batched and one by one."""
    try:
        import torch
        import transformers
    except ImportError:
        return {"missing": ["transformers on torch"]}
    from models.checkpoints.marian import load_marian
    from models.seq2seq_decode import Searcher
    from models.seq2seq_search import SearchConfig

    model = marian_model(torch, transformers)
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 48, sentences)
    sources = [[*rng.integers(1, 58100, int(length)).tolist(), 0] for length in lengths]
    config = SearchConfig(max_length=max_length, banned=(58100,), batch_size=48)
    assert max(lengths) + 2 < max_length
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        ours = load_marian(folder)
    searcher = Searcher(ours)
    found = searcher(sources, config)

    def peer(batch: int, chosen: list[list[int]]) -> list[list[int]]:
        out = []
        for start in range(0, len(chosen), batch):
            part = chosen[start : start + batch]
            width = max(map(len, part))
            ids = torch.tensor([source + [58100] * (width - len(source)) for source in part])
            with torch.no_grad():
                rows = model.generate(
                    input_ids=ids, attention_mask=(ids != 58100).long(), num_beams=1, max_length=max_length
                ).tolist()
            for row in rows:
                row = row[1:]
                row = row[: row.index(0)] if 0 in row else row
                out.append([token for token in row if token != 58100])
        return out

    some = sources[:: max(1, len(sources) // 8)][:8]
    seconds = interleaved(
        {
            "ours": lambda: searcher(sources, config),
            "peer": lambda: peer(PEER_BATCH, sources),
            "one by one": lambda: peer(1, some),
        },
        rounds,
    )
    tokens = sum(map(len, found))
    same = statistics.mean(a == b for a, b in zip(found, peer(PEER_BATCH, sources)))
    copied = statistics.mean(a == b[:-1] for a, b in zip(found, sources))
    one_by_one = seconds["one by one"] * sum(map(len, sources)) / sum(map(len, some))
    print(f"translation: {len(sources)} sentences, {tokens:,} new tokens, {min(map(len, found))} to "
          f"{max(map(len, found))} each; same tokens as the peer: {same:.0%}, as the source: {copied:.0%}")  # fmt: skip
    for name, value in {**seconds, "one by one": one_by_one}.items():
        print(f"  {name:<12}{value:8.2f} s{tokens / value:10.0f} tokens/s")
    assert same > 0.95, "the two sides do not translate alike"
    return {
        "marian_over_transformers": seconds["peer"] / seconds["ours"],
        "marian_over_one_by_one": one_by_one / seconds["ours"],
        "marian_tokens_per_s": tokens / seconds["ours"],
    }


# -------------------------------------------------------------------------------------------------- masked replacement


def bert_folder(texts: list[str], folder: Path, torch: Any, transformers: Any) -> Any:
    """A random encoder with a WordPiece tokenizer of the texts' own words; their model."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=8000, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=30522,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            max_position_embeddings=512,
        )
    )
    model.eval().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


def bench_mlm(rounds: int, count: int) -> dict[str, Any]:
    """Masked replacement against transformers, batched and a word at a time."""
    try:
        import torch
        import transformers
    except ImportError:
        return {"missing": ["transformers on torch"]}
    from data.augment.masked import Masked, MaskedReplacement, MaskedRewriter
    from data.augment.technique import Request
    from models.fill import MaskedFiller

    rng = np.random.default_rng(0)
    texts = [text[: int(rng.integers(200, 1000))] for text in documents(count)]
    with tempfile.TemporaryDirectory() as name:
        model = bert_folder(texts, Path(name), torch, transformers)
        filler = MaskedFiller(checkpoint=name).build()
    rewriter = MaskedRewriter(MaskedReplacement(filler=filler), filler)
    found = [rewriter.mask(Request(text, number)) for number, text in enumerate(texts)]
    masked = [item for item in found if isinstance(item, Masked)]
    tokenizer = filler.tokenizer
    generator = torch.Generator().manual_seed(0)

    def with_masks(item: Masked) -> str:
        out, end = [], 0
        for start, stop in item.spans:
            out += [item.text[end:start], "[MASK]"]
            end = stop
        return "".join([*out, item.text[end:]])

    def draw(logits: Any) -> Any:
        values, words = logits.topk(10, dim=-1)
        return words.gather(-1, torch.multinomial(values.softmax(-1), 1, generator=generator))

    def peer_batched() -> int:
        drawn = 0
        for start in range(0, len(masked), PEER_BATCH):
            ids = [
                encoding.ids
                for encoding in tokenizer.encode_batch([with_masks(i) for i in masked[start : start + PEER_BATCH]])
            ]
            width = max(map(len, ids))
            tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
            with torch.no_grad():
                logits = model(tokens, attention_mask=mask).logits[tokens == 4]
            drawn += len(draw(logits))
        return drawn

    some = masked[:: max(1, len(masked) // 4)][:4]

    def peer_word_by_word() -> int:
        drawn = 0
        for item in some:
            for span in item.spans:
                ids = torch.tensor([tokenizer.encode(with_masks(Masked(item.text, (span,), 0))).ids])
                with torch.no_grad():
                    drawn += len(draw(model(ids).logits[ids == 4]))
        return drawn

    seconds = interleaved(
        {"ours": lambda: filler.fill(masked), "peer": peer_batched, "word by word": peer_word_by_word}, rounds
    )
    number = sum(len(item.spans) for item in masked)
    word_by_word = seconds["word by word"] * number / sum(len(item.spans) for item in some)
    print(f"masked replacement: {len(masked)} texts, {number:,} words")
    for name, value in {**seconds, "word by word": word_by_word}.items():
        print(f"  {name:<12}{value:8.2f} s{number / value:10.0f} words/s")
    return {
        "mlm_over_transformers": seconds["peer"] / seconds["ours"],
        "mlm_over_one_by_one": word_by_word / seconds["ours"],
        "mlm_words_per_s": number / seconds["ours"],
    }


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.augment", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=192)
    parser.add_argument("--texts", type=int, default=192)
    parser.add_argument("--only", choices=("rules", "marian", "mlm"))
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "rules": lambda: bench_rules(arguments.rounds),
        "marian": lambda: bench_marian(arguments.rounds, arguments.sentences),
        "mlm": lambda: bench_mlm(arguments.rounds, arguments.texts),
    }
    result: dict[str, Any] = {}
    for name, part in parts.items():
        if arguments.only in (None, name):
            found = part()
            result["missing"] = [*result.get("missing", []), *found.pop("missing", [])]
            result |= found
            for key, value in found.items():
                print(f"{key:<28}{value:12.3f}")
    if not result["missing"]:
        del result["missing"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()

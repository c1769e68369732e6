"""What a checkpoint is worth: bits per byte of held-out documents, accuracy on multiple-choice questions.

python -m train.evaluate --checkpoint RUN --input DATASET              held-out documents of a dataset, by source
python -m train.evaluate --checkpoint hf:ORG/NAME --input texts.jsonl  {"text": ...} a line: bits per byte
python -m train.evaluate --checkpoint MODEL.gguf --input arc.jsonl     {"question", "choices", "answer"}: accuracy
python -m train.evaluate --checkpoint DIR --harness hellaswag,arc_easy tasks of the lm-evaluation-harness (lm-eval)

Documents are framed as in training, BOS + text + EOS, and every token counts, so bits per byte compare between
tokenizers and with `heldout/bits_per_byte` of a run. The last line is one JSON object; --output keeps it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from models.command import add_adapter_options, run_command, use_compile_cache

WINDOW = 1024  # tokens that a prediction sees where neither the run nor the model says less


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, help="run folder, HF folder, .gguf, hf:ORG/NAME, package:NAME/FILE"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--input", type=Path, help="a dataset folder, or JSON Lines of texts or of questions")
    what.add_argument("--harness", metavar="TASKS", help="tasks of the lm-evaluation-harness, separated by commas")
    parser.add_argument("--harness-tasks", type=Path, metavar="FOLDER", help="further task files for --harness")
    add_adapter_options(parser)
    parser.add_argument("--fewshot", type=int, help="examples before each question of --harness; default: the task's")
    parser.add_argument("--limit", type=int, help="questions a task (--harness), or questions or texts of a file")
    parser.add_argument("--output", type=Path, help="write the results here as JSON")
    parser.add_argument(
        "--window", type=int, help=f"most tokens a prediction sees; default: as trained, at most {WINDOW}"
    )
    parser.add_argument("--stride", type=int, help="tokens between two windows of a long text; default: half a window")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute dtype; default by device")
    return parser.parse_args(argv)


def make_scorer(loaded: Any, window: int | None, stride: int | None, adapter: int = 0) -> Any:
    """A scorer whose windows are those that the checkpoint was trained with, where nothing else is asked for."""
    from models.checkpoints.run import read_run_seq_len
    from models.scoring import Scorer, ScoringConfig
    from models.specs import text_tokenizer

    trained = read_run_seq_len(loaded.location.path) if loaded.location.kind == "run" else None
    window = window or min(WINDOW, trained + 1 if trained else WINDOW)  # a row of seq_len inputs has one target more
    config = ScoringConfig(window=window, stride=stride or max(1, window // 2))
    return Scorer(loaded.model, text_tokenizer(loaded), config, adapter=adapter)


def evaluate_documents(scorer: Any, texts: dict[str, list[str]]) -> dict[str, Any]:
    """Bits per byte by source, as a table and as JSON values."""
    from train.evaluation import text_scores

    result = {}
    print(f"{'source':<20}{'documents':>10}{'bytes':>14}{'bits/byte':>11}")
    for source, score in text_scores(scorer, texts).items():
        count = len(texts[source]) if source in texts else sum(map(len, texts.values()))
        result[source] = {
            "documents": count,
            "bytes": score.num_bytes,
            "nats": score.nats,
            "bits_per_byte": score.bits_per_byte,
        }
        print(f"{source:<20}{count:>10,}{score.num_bytes:>14,}{score.bits_per_byte:>11.4f}")
    return {"bits_per_byte": {source: found["bits_per_byte"] for source, found in result.items()}, "sources": result}


def evaluate_questions(scorer: Any, questions: list[Any]) -> dict[str, Any]:
    """Accuracies of multiple choice, and every question's scores."""
    from models.choices import choice_accuracy, choice_scores, encode_questions

    scores = choice_scores(scorer, *encode_questions(scorer.tokenizer, questions))
    plain, normed = choice_accuracy(scores, questions)
    guessing = sum(1 / len(question.choices) for question in questions) / len(questions)
    print(
        f"{len(questions):,} questions: accuracy {plain:.4f}, length-normalised {normed:.4f}, guessing {guessing:.4f}"
    )
    result = {"questions": len(questions), "accuracy": plain, "accuracy_norm": normed, "guessing": guessing}
    return result | {"log_likelihoods": scores}


def evaluate_file(scorer: Any, path: Path, limit: int | None) -> dict[str, Any]:
    """A JSON Lines file: its first line says whether it holds texts or questions."""
    from models.choices import read_questions
    from models.score import read_documents

    if not path.is_file():
        raise ValueError(f"no dataset and no file at {path}: expected a dataset folder or a .jsonl file")
    with path.open(encoding="utf-8") as lines:
        first = next((line for line in lines if line.strip()), "")
    if '"choices"' in first:
        return evaluate_questions(scorer, read_questions(path)[:limit])
    return evaluate_documents(scorer, {path.stem: [each.text for each in read_documents(path)][:limit]})


def evaluate_harness(scorer: Any, model: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Tasks of the lm-evaluation-harness, as a table and as JSON values."""
    try:
        from models.harness import HarnessLM, run_harness
    except ImportError as error:
        raise ValueError(f"--harness needs the lm-evaluation-harness ({error}): pip install lm-eval") from None
    from models.decode import Decoder

    found = run_harness(
        HarnessLM(scorer, Decoder(model)),
        arguments.harness.split(","),
        task_folder=arguments.harness_tasks,
        fewshot=arguments.fewshot,
        limit=arguments.limit,
    )
    tasks: dict[str, dict[str, float]] = {}
    for task, metrics in found.items():
        tasks[task] = {name.removesuffix(",none"): v for name, v in metrics.items() if isinstance(v, int | float)}
        print(f"{task:<30}" + ", ".join(f"{name} {value:.4f}" for name, value in tasks[task].items()))
    return {"tasks": tasks}


def run(argv: list[str]) -> int:
    """Load, evaluate, print; the last line is JSON."""
    arguments = parse_arguments(argv)
    from models.checkpoints.adapters import named_folders
    from models.checkpoints.load import load_checkpoint
    from train.evaluation import heldout_texts

    use_compile_cache()
    texts = heldout_texts(arguments.input) if arguments.input and arguments.input.is_dir() else None
    loaded = load_checkpoint(arguments.checkpoint, dtype=arguments.dtype, adapters=named_folders(arguments.adapter))
    scorer = make_scorer(loaded, arguments.window, arguments.stride, loaded.adapter(arguments.use))
    if arguments.harness:
        result = evaluate_harness(scorer, loaded.model, arguments)
    elif texts is not None:
        result = evaluate_documents(scorer, texts)
    else:
        result = evaluate_file(scorer, arguments.input, arguments.limit)
    result = {"checkpoint": arguments.checkpoint, "window": scorer.config.window, **result}
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key not in ("log_likelihoods", "sources")}))
    return 0


if __name__ == "__main__":
    run_command(run)

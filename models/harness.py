"""The lm-evaluation-harness on a model of ours (needs the optional package lm-eval; imported only by who asks for it).

    results = run_harness(HarnessLM(scorer, Decoder(model)), ["hellaswag"])     # what lm_eval.simple_evaluate returns

A prompt longer than the scorer's window is cut at its beginning, as the harness's own models do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from models.checkpoints.tokenizer import TextTokenizer
from models.decode import DecodeConfig, Decoder
from models.generation import generate_texts
from models.sampling import SamplingConfig
from models.scoring import Scorer

MAX_NEW_TOKENS = 256  # of a text where its task does not say; the harness's own default
GENERATION_KEYS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p"}


class HarnessLM(TemplateLM):
    """The harness's three questions to a model, answered by a scorer and a decoder."""

    def __init__(self, scorer: Scorer, decoder: Decoder):
        super().__init__()
        if not isinstance(scorer.tokenizer, TextTokenizer):
            raise ValueError("the harness needs a scorer with the checkpoint's tokenizer")
        self.scorer, self.decoder, self.tokenizer = scorer, decoder, scorer.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        ends = (self.tokenizer.eos_id, self.tokenizer.bos_id)
        return next(token for token in ends if token is not None)

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without a prompt: BOS, or EOS where there is none."""
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """What cached requests are told apart by."""
        return f"sluice-{self.tokenizer.vocab_size}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; a rendered conversation already begins with its BOS."""
        bos = self.tokenizer.bos_id
        begun = add_special_tokens is None and bos is not None and self.tokenizer.encode(string)[:1] == [bos]
        plain = begun or add_special_tokens is False
        return self.tokenizer.encode(string) if plain else self.tokenizer.encode_prompt(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as prompt text."""
        return self.tokenizer.render_chat(chat_history, add_generation_prompt=add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """(log p of the continuation, nats; whether greedy decoding gives it) of every (texts, context, ids)."""
        window = self.scorer.config.window
        documents = [[*context, *ids][-max(window, len(ids) + 1) :] for _, context, ids in requests]
        found = self.scorer.token_scores(documents)
        counts = [len(ids) for *_, ids in requests]
        return [
            (-float(np.sum(scores.nats[-n:], dtype=np.float64)), bool(scores.likeliest[-n:].all()))
            if n
            else (0.0, True)
            for n, scores in zip(counts, found)
        ]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, nats, in the scorer's sliding windows."""
        texts = [request.args[0] for request in requests]
        nats, _ = self.scorer.score_ids([[self.prefix_token_id, *self.tokenizer.encode(text)] for text in texts])
        return [-value for value in nats]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to their stop strings; requests with the same settings are decoded together."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        for numbers in groups.values():
            config = decode_config(requests[numbers[0]].args[1])
            context = self.decoder.config.embedding.max_positions or self.scorer.config.window
            kept = max(1, context - config.max_new_tokens)
            prompts = [self.tok_encode(requests[number].args[0])[-kept:] for number in numbers]
            adapters = [self.scorer.adapter] * len(prompts)
            answers = generate_texts(self.decoder, self.tokenizer, prompts, config, adapters)
            for number, text in zip(numbers, answers):
                texts[number] = text
        return texts


def decode_config(settings: dict[str, Any]) -> DecodeConfig:
    """A task's generation settings; ValueError names one that is not known here."""
    if unknown := sorted(settings.keys() - GENERATION_KEYS):
        raise ValueError(
            f"the task's generation setting {unknown[0]!r} is not known; known are {sorted(GENERATION_KEYS)}"
        )
    until = settings.get("until") or ()
    sampled = settings.get("do_sample", settings.get("temperature", 0.0) > 0)
    return DecodeConfig(
        max_new_tokens=settings.get("max_gen_toks", MAX_NEW_TOKENS),
        stop_strings=(until,) if isinstance(until, str) else tuple(until),
        sampling=SamplingConfig(
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            **{name: settings[name] for name in ("top_k", "top_p", "min_p") if sampled and settings.get(name)},
        ),
    )


def run_harness(
    model: HarnessLM,
    tasks: Sequence[str],
    *,
    task_folder: Path | None = None,
    fewshot: int | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """The harness's results for its tasks, by name. task_folder: further task files (YAML)."""
    manager = TaskManager(include_path=None if task_folder is None else str(task_folder))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise ValueError(f"the lm-evaluation-harness has no task {', '.join(unknown)}; `lm-eval ls tasks` lists them")
    found = simple_evaluate(
        model, tasks=list(tasks), num_fewshot=fewshot, limit=limit, task_manager=manager, log_samples=False
    )
    return found["results"]

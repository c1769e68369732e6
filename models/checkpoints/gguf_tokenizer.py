"""A tokenizer out of GGUF metadata: byte-level BPE ("gpt2") and SentencePiece BPE ("llama"), without torch.

The split expressions belong to the names in `tokenizer.ggml.pre`; they are those of the models' own tokenizer.json
files (SmolLM2, GPT-2, Llama 3, Qwen2). An unknown name is refused, since a wrong split gives readable but wrong ids.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from models.checkpoints.gguf_file import GgufFile
from models.checkpoints.tokenizer import TextTokenizer

LLAMA3_NAMES = ("llama-bpe", "smaug-bpe")  # the second is what llama.cpp calls SmolLM3's, which is Llama 3's
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # tokenizer.ggml.token_type
CHAT_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")  # tokens that end a turn, where the vocabulary has them
SPACE = "▁"  # SentencePiece's mark


def gguf_tokenizer(file: GgufFile) -> TextTokenizer:
    """The tokenizer, its special ids and its chat template; ValueError where the file's kind is not known."""
    return tokenizer_of(file.metadata, str(file.path))


def tokenizer_of(meta: Mapping[str, Any], origin: str) -> TextTokenizer:
    """The tokenizer that GGUF metadata describes. origin: what messages call the file."""
    kind = meta.get("tokenizer.ggml.model")
    if "tokenizer.ggml.tokens" not in meta:
        raise ValueError(f"{origin} carries no vocabulary (tokenizer.ggml.tokens); give a Hugging Face folder")
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    if kind == "gpt2":
        backend = _byte_level(meta, tokens)
    elif kind == "llama":
        if len(meta.get("tokenizer.ggml.scores", ())) != len(tokens):
            raise ValueError(
                f"{origin} has no score for each of its {len(tokens)} tokens (tokenizer.ggml.scores), and they merge "
                "by it: convert it again, or give a Hugging Face folder"
            )
        backend = _sentencepiece(meta, tokens)
    else:
        raise ValueError(f"{origin} has a tokenizer of kind {kind!r}; expected 'gpt2' or 'llama'")
    types: list[int] = meta.get("tokenizer.ggml.token_type", [1] * len(tokens))
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types) if k in (UNKNOWN, CONTROL)]
    )
    backend.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types) if k == USER_DEFINED])
    bos, eos = meta.get("tokenizer.ggml.bos_token_id"), meta.get("tokenizer.ggml.eos_token_id")
    if bos is not None and meta.get("tokenizer.ggml.add_bos_token", kind == "llama"):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    ends = (backend.token_to_id(token) for token in CHAT_ENDS)
    return TextTokenizer(
        backend=backend,
        bos_id=bos,
        eos_id=eos,
        pad_id=meta.get("tokenizer.ggml.padding_token_id"),
        stop_ids=tuple(dict.fromkeys(i for i in (eos, *ends) if i is not None)),
        chat_template=meta.get("tokenizer.chat_template"),
    )


def _byte_level(meta: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    name = meta.get("tokenizer.ggml.pre", "default")
    split: dict[str, list[Any]] = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "default": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
        **{llama3: _regex_split(LLAMA3_SPLIT) for llama3 in LLAMA3_NAMES},
        "qwen2": _regex_split(QWEN2_SPLIT),
    }
    if name not in split:
        raise ValueError(f"the GGUF tokenizer splits words by {name!r}; known are {', '.join(split)}")
    merges = [tuple(merge.split(" ", 1)) for merge in meta.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=name in LLAMA3_NAMES))
    backend.pre_tokenizer = pre_tokenizers.Sequence(split[name])
    backend.decoder = decoders.ByteLevel()
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


def _regex_split(expression: str) -> list[Any]:
    split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def _sentencepiece(meta: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """SentencePiece BPE as merges: every way to join two pieces of the vocabulary, the best scored piece first."""
    scores = meta["tokenizer.ggml.scores"]
    types = meta.get("tokenizer.ggml.token_type", [1] * len(tokens))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pieces = [i for i, kind in enumerate(types) if kind not in (UNKNOWN, CONTROL, BYTE)]
    known = {tokens[i] for i in pieces}
    merges = [
        (tokens[i][:cut], tokens[i][cut:])
        for i in sorted(pieces, key=lambda i: -scores[i])
        for cut in range(1, len(tokens[i]))
        if tokens[i][:cut] in known and tokens[i][cut:] in known
    ]
    unknown = tokens[meta.get("tokenizer.ggml.unknown_token_id", 0)]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps: list[Any] = [normalizers.Replace(" ", SPACE)]
    tail: list[Any] = []
    if meta.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(SPACE))
        tail = [decoders.Strip(" ", 1, 0)]
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *tail])
    return backend

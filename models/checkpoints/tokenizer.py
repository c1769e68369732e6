"""The tokenizer and chat template that belong to a checkpoint, read without torch.

From a Hugging Face folder (`tokenizer.json`), from a Sluice run (`tokenizer/tokenizer.json`) or from GGUF metadata
(models.checkpoints.gguf_tokenizer). Chat templates come from outside, so they run in jinja2's immutable sandbox only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from models.checkpoints.location import read_object

TEMPLATE_FILE = "chat_template.jinja"
SENTENCEPIECE_FILE = "tokenizer.model"
CARRIED = ("unk_token", "additional_special_tokens", "split_special_tokens")  # of tokenizer_config.json, as they are


@dataclass(frozen=True, kw_only=True)
class TextTokenizer:
    """Text to ids and back, with the ids that mean something to decoding.

    stop_ids: ids that end a generated text (end of sequence, and end of turn where the checkpoint names one).
    prefix_bos: whether `encode_prompt` puts BOS first where the tokenizer's own post-processor does not.
    carried: further keys of tokenizer_config.json that are saved again. With split_special_tokens, as tokenizers
    trained here have it, "<s>" in a document is three characters; in a prompt it is the token, since chats have it.
    sentencepiece: the bytes of tokenizer.model, saved again.
    """

    backend: Tokenizer = field(repr=False)
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    stop_ids: tuple[int, ...]
    chat_template: str | None = field(default=None, repr=False)
    prefix_bos: bool = False
    carried: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentencepiece: bytes | None = field(default=None, repr=False)

    @cached_property
    def _document_backend(self) -> Tokenizer:
        """The backend of documents: one of its own where they are read otherwise than prompts."""
        if not self.carried.get("split_special_tokens"):
            return self.backend
        backend = Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def vocab_size(self) -> int:
        """Ids are below this; some vocabularies have holes."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """The ids of a part of a prompt, no BOS or EOS; special tokens are found in it."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many documents, no BOS or EOS, as in training; on all cores."""
        found = self._document_backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def encode_document(self, text: str) -> list[int]:
        """The ids of one document as in training, with BOS where `encode_prompt` puts it."""
        return self._begun(self._document_backend, text)

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a prompt: BOS first where the checkpoint was trained so; special tokens are found in the text."""
        return self._begun(self.backend, text)

    def _begun(self, backend: Tokenizer, text: str) -> list[int]:
        ids = backend.encode(text, add_special_tokens=True).ids
        named = text.endswith(self._eos_text()) and not backend.encode_special_tokens
        if self.eos_id is not None and len(ids) > 1 and ids[-1] == self.eos_id and not named:
            ids = ids[:-1]  # a post-processor that closes documents must not close a prompt
        if self.prefix_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens (BOS, end of turn, padding) are left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of one token by its string, or None."""
        return self.backend.token_to_id(token)

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The prompt text of a conversation, by the checkpoint's chat template. Messages: {"role", "content"}."""
        return self.template()(messages, add_generation_prompt)

    def template(self) -> "ChatTemplate":
        """The chat template by itself; ValueError where the checkpoint has none."""
        if self.chat_template is None:
            raise ValueError("this checkpoint has no chat template; give a plain prompt instead of a conversation")
        return ChatTemplate(source=self.chat_template, bos=self._text_of(self.bos_id), eos=self._eos_text())

    def _text_of(self, token: int | None) -> str:
        return "" if token is None else self.backend.id_to_token(token) or ""

    def _eos_text(self) -> str:
        return self._text_of(self.eos_id)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, its config, the chat template and tokenizer.model, as `AutoTokenizer` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.save(str(folder / "tokenizer.json"))
        named = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config |= {key: text for key, value in named.items() if (text := self._text_of(value))}
        config |= self.carried
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        if self.chat_template is not None:
            (folder / TEMPLATE_FILE).write_text(self.chat_template)
        if self.sentencepiece is not None:
            (folder / SENTENCEPIECE_FILE).write_bytes(self.sentencepiece)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A chat template and the two special tokens that it may write: a small value that pickles."""

    source: str
    bos: str
    eos: str

    def __call__(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """The text of a conversation; ValueError where the template refuses it."""
        return render_template(
            self.source,
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos,
            eos_token=self.eos,
        )


def load_tokenizer_folder(folder: Path, *, prefix_bos: bool = False) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder or of a run's `tokenizer/`; ValueError where tokenizer.json is absent."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ValueError(f"{folder} has no tokenizer.json; save it with AutoTokenizer.save_pretrained first")
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer.json that this version of tokenizers reads: {error}") from None
    backend.no_padding()
    backend.no_truncation()
    special = read_object(folder / "special_tokens_map.json")
    config = special | {k: v for k, v in read_object(folder / "tokenizer_config.json").items() if v is not None}

    def token(name: str) -> int | None:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            return None
        found = backend.token_to_id(text)
        if found is None:
            raise ValueError(
                f"{folder}: tokenizer_config.json names {name} {text!r}, a token that tokenizer.json does not have; "
                "mend either"
            )
        return found

    eos = token("eos_token")
    generation = read_object(folder / "generation_config.json").get("eos_token_id")
    declared = generation if isinstance(generation, list) else [generation]
    stops = dict.fromkeys(i for i in (eos, *declared) if isinstance(i, int))
    return TextTokenizer(
        backend=backend,
        bos_id=token("bos_token"),
        eos_id=eos,
        pad_id=token("pad_token"),
        stop_ids=tuple(stops),
        chat_template=_template(folder, config),
        prefix_bos=prefix_bos,
        carried={key: config[key] for key in CARRIED if config.get(key) is not None},
        sentencepiece=_sentencepiece(folder / SENTENCEPIECE_FILE),
    )


def _sentencepiece(path: Path) -> bytes | None:
    """The file where it is a SentencePiece model; other libraries give the same name to lists of tokens."""
    content = path.read_bytes() if path.is_file() else b""
    return content if content.startswith(b"\n") else None  # the first field of its protobuf: the pieces


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    if (folder / TEMPLATE_FILE).exists():
        return (folder / TEMPLATE_FILE).read_text()
    found = config.get("chat_template")
    if isinstance(found, list):  # several named templates
        found = next((entry["template"] for entry in found if entry.get("name") == "default"), None)
    return found


def render_template(template: str, **values: Any) -> str:
    """A chat template rendered in jinja2's immutable sandbox, with the helpers that such templates expect.

    `raise_exception(text)` of the template becomes a ValueError; `{% generation %}` blocks render as their content.
    """
    try:
        import jinja2
    except ImportError:
        raise ValueError("chat templates need jinja2: pip install jinja2") from None
    try:
        return compiled_template(template).render(**values)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template failed: {error}") from None


@lru_cache(16)
def compiled_template(template: str) -> Any:
    """The template as jinja2 compiles it, which takes longer than rendering a conversation."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`, which transformers uses to mark what an assistant said."""

        tags = {"generation"}  # noqa: RUF012 (what jinja2 asks for)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise ValueError(f"the chat template refuses this conversation: {message}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)

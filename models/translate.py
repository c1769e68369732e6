"""A MarianMT model as a translator of sentences: SentencePiece in, search, SentencePiece out.

    MarianTranslator(checkpoint="hf:Helsinki-NLP/opus-mt-en-fr", source="en", target="fr").build().translate(["Hello."])

The folder's own `source.spm`, `target.spm` and `vocab.json` are read (no torch, no sacremoses: Marian's tokenizer
normalises punctuation first, which changes rare characters only and is left to the cleaning of the corpus).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.checkpoints.listed import files_key
from models.checkpoints.location import resolve
from models.checkpoints.marian import load_marian, search_config
from models.seq2seq import Seq2SeqLM
from models.seq2seq_decode import Searcher
from models.seq2seq_search import SearchConfig

TARGET = re.compile(r">>.*?<<")  # what models of several target languages read first
NOT_IN_KEY = {"in_key": False}  # dataclasses.field(metadata=...): never changes what is translated


class MarianTokenizer:
    """Text to ids with the source's SentencePiece model, ids to text with the target's; both share one vocabulary."""

    def __init__(self, folder: Path):
        import sentencepiece

        missing = [name for name in ("source.spm", "target.spm", "vocab.json") if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} lacks {', '.join(missing)}: expected the tokenizer files of a MarianMT folder")
        self.source = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
        self.target = sentencepiece.SentencePieceProcessor(model_file=str(folder / "target.spm"))
        self.ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        self.pieces = {number: piece for piece, number in self.ids.items()}
        self.unknown, self.eos = self.ids["<unk>"], self.ids["</s>"]

    def encode(self, text: str) -> list[int]:
        """Ids with EOS at the end. ">>fra<<" in front, the target of a model that has several, is one token."""
        target = TARGET.match(text)
        pieces = self.source.encode(text[target.end() :] if target else text, out_type=str)
        pieces = [target.group(), *pieces] if target else pieces
        return [*(self.ids.get(piece, self.unknown) for piece in pieces), self.eos]

    def check_prefix(self, prefix: str) -> None:
        """ValueError where a prefix names no target language of this model."""
        target = TARGET.match(prefix)
        if target and target.group() not in self.ids:
            known = sorted(piece for piece in self.ids if TARGET.fullmatch(piece))
            shown = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
            raise ValueError(
                f"no target {target.group()!r} in this translator: it has {shown or 'one target, unnamed'}"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""
        pieces = [self.pieces.get(int(number), "") for number in ids]
        return self.target.decode([piece for piece in pieces if piece not in ("</s>", "<pad>", "<unk>")])


class Translator:
    """A model, its tokenizer and how it is searched."""

    def __init__(self, model: Seq2SeqLM, tokenizer: Any, config: SearchConfig, prefix: str = ""):
        self.searcher, self.tokenizer, self.config, self.prefix = Searcher(model), tokenizer, config, prefix

    def translate(self, sentences: Sequence[str]) -> list[str]:
        """Each sentence translated, in order; "" for one that is empty or longer than the model's positions."""
        encoded = [self.tokenizer.encode(self.prefix + sentence) for sentence in sentences]
        longest = self.searcher.config.max_positions
        good = [number for number, ids in enumerate(encoded) if sentences[number].strip() and len(ids) <= longest]
        out = [""] * len(encoded)
        for number, ids in zip(good, self.searcher([encoded[number] for number in good], self.config)):
            out[number] = self.tokenizer.decode(ids)
        return out


@dataclass(frozen=True, kw_only=True)
class MarianTranslator:
    """What makes a translator of a MarianMT folder. source, target: ISO 639-1 codes of its languages.

    num_beams: None for the folder's own setting, 1 is greedy. prefix: of every sentence, for models of several target
    languages (">>fra<< "). batch_size: sentences at a time; never changes a translation.
    """

    checkpoint: str
    source: str
    target: str
    num_beams: int | None = None
    prefix: str = ""
    batch_size: int = field(default=32, metadata=NOT_IN_KEY)

    def inputs_key(self) -> Any:
        """The folder's files."""
        return files_key(self.checkpoint)

    def build(self) -> Translator:
        """Load the model; ValueError where the folder is not whole, no MarianMT, or has no such target language."""
        folder = resolve(self.checkpoint).path
        config = replace(search_config(folder), batch_size=self.batch_size)
        if self.num_beams is not None:
            config = replace(config, num_beams=self.num_beams)
        tokenizer = MarianTokenizer(folder)
        tokenizer.check_prefix(self.prefix)
        return Translator(load_marian(folder), tokenizer, config, self.prefix)

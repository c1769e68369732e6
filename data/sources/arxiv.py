"""arXiv papers from LaTeX source: bulk tars, one archive a paper (tar.gz, gz), or folders of .tex files.

ArxivSource(name="arxiv", paths=("arXiv_src_2001_*.tar",), metadata=("oai/*.xml",))
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources import files
from data.sources.archives import BLOCK, is_tar, tar_members
from data.sources.base import FileSource
from data.sources.latex_source import Expander, find_main, resolve_inputs
from data.sources.latex_text import latex_to_text, title_of
from data.sources.limits import BombError, CorruptError
from data.sources.oai import KnownPapers, read_metadata
from data.sources.text_files import decode_text

ARXIV_ID = re.compile(r"(?:arXiv[_:-]?)?(\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?_?/?\d{7})(?:v\d+)?", re.I)
TEX_SUFFIXES = (".tex", ".ltx", ".latex", ".tikz", ".inc", ".txt", "")


def arxiv_id(key: str) -> str:
    """The arXiv identifier in a file name, or the name without its extensions."""
    name = PurePosixPath(key).name
    found = ARXIV_ID.match(name)
    if not found:
        return re.sub(r"\.(tar|gz|tgz|tex|zst)\b", "", name) or name
    return re.sub(r"^([a-z-]+(?:\.[A-Z]{2})?)_?/?(\d{7})$", r"\1/\2", found.group(1), flags=re.I)


def paper_text(texts: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """(text, meta) of a paper from its TeX files. ValueError where no main file is found or nothing is in it."""
    main = find_main(texts)
    whole, missing = resolve_inputs(texts, main)
    expander = Expander()
    whole = expander.expand(whole)
    return latex_to_text(whole), {"title": title_of(whole), "main_file": main, "missing_inputs": missing[:20]}


@dataclass(frozen=True, kw_only=True)
class ArxivSource(FileSource):
    """LaTeX papers.

    metadata: OAI-PMH records (format arXiv) that give title, authors, categories, dates and licence by identifier;
        each worker keeps them in a temporary file.
    """

    metadata: tuple[str, ...] = ()

    suffixes: ClassVar[tuple[str, ...]] = (".tar", ".tex", ".tgz", "")
    version: ClassVar[int] = 5
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        *(
            f"data.sources.{name}"
            for name in (
                "arxiv",
                "archives",
                "latex_source",
                "latex_text",
                "oai",
                "xml_records",
                "text_files",
                "charset",
            )
        ),
    )
    libraries: ClassVar[tuple[str, ...]] = ("lxml", "charset-normalizer")

    def inputs_key(self) -> Any:
        """The papers and the metadata files."""
        known = [[entry.key, entry.size, files.fingerprint(entry)] for entry in self._metadata()]
        return {"papers": super().inputs_key(), "metadata": known}

    def _metadata(self) -> tuple[files.FileEntry, ...]:
        return tuple(files.list_files(self.metadata, (".xml",)))

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One paper, or every paper of a bulk tar."""
        known = read_metadata(self._metadata(), self.limits)
        head = stream.peek(BLOCK)[:BLOCK]
        if not is_tar(head):
            data = self.read_file(stream)
            yield self._paper(shard, None, arxiv_id(shard["key"]), {PurePosixPath(shard["key"]).name: data}, known)
            return
        texts: dict[str, bytes] = {}
        size, limit, bulk = 0, self.limits.max_record_bytes, False
        for name, content in self._members(stream, shard):
            if isinstance(content, Dropped):
                yield content
            elif name.endswith((".gz", ".pdf")) and ARXIV_ID.match(PurePosixPath(name).name):
                bulk = True
                yield from self._bulk_member(shard, name, content, known)
            else:
                size += len(content)
                if size <= limit:
                    texts[name] = content
        if size > limit:
            yield self.too_large(shard, None, size)
        elif texts or not bulk:
            yield self._paper(shard, None, arxiv_id(shard["key"]), texts, known)

    def _members(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[tuple[str, bytes | Dropped]]:
        """(name, bytes or drop) of the regular files that may hold TeX, within the limits."""
        for count, member in enumerate(tar_members(stream, self.limits.max_members), 1):
            suffix = PurePosixPath(member.name).suffix.lower()
            if member.fault:
                yield "", self.drop(shard, f"member-{count}", member.fault, value=member.name)
            elif suffix == ".pdf":
                yield member.name, b""
            elif suffix in (*TEX_SUFFIXES, ".gz"):
                if member.size > self.limits.max_record_bytes:
                    yield member.name, self.too_large(shard, member.name, member.size)
                else:
                    yield member.name, member.read()

    def _bulk_member(
        self, shard: Mapping[str, Any], name: str, data: bytes, known: KnownPapers
    ) -> Iterator[Document | Dropped]:
        """The paper, and what is dropped inside it."""
        if name.endswith(".pdf"):
            yield self.drop(shard, name, "pdf_only")
            return
        limit = self.limits.max_record_bytes
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as opened:
                inner = opened.read(limit + 1)
        except (OSError, EOFError, zlib.error) as error:
            yield self.drop(shard, name, "corrupt_record", value=str(error))
            return
        if len(inner) > limit:
            yield self.drop(shard, name, "record_too_large", value=len(inner), threshold=limit)
            return
        if not is_tar(inner[:BLOCK]):
            yield self._paper(shard, name, arxiv_id(name), {"main.tex": inner}, known)
            return
        inside: dict[str, bytes] = {}
        try:
            for path, content in self._members(io.BytesIO(inner), {**shard, "key": f"{shard['key']}:{name}"}):
                if isinstance(content, Dropped):
                    yield content
                else:
                    inside[path] = content
        except (CorruptError, BombError) as error:
            yield self.drop(shard, name, "corrupt_record", value=str(error))
            return
        yield self._paper(shard, name, arxiv_id(name), inside, known)

    def _paper(
        self,
        shard: Mapping[str, Any],
        record: str | None,
        number: str,
        data: Mapping[str, bytes],
        known: KnownPapers,
    ) -> Document | Dropped:
        texts = {}
        for name, content in data.items():
            if not name.endswith((".gz", ".pdf")):
                try:
                    texts[name] = decode_text(content)[0].replace("\r\n", "\n").replace("\r", "\n")
                except ValueError:
                    continue
        try:
            text, meta = paper_text(texts)
        except (ValueError, RecursionError) as error:
            return self.drop(shard, record, "bad_latex", value=str(error) or type(error).__name__, arxiv_id=number)
        meta.update(known.get(number))
        return self.document(shard, record, text, arxiv_id=number, group=f"arxiv:{number}", **meta)

"""Folders of saved HTML pages: the main text of each, by the extraction chain.

HtmlFolder(name="pages", paths=("saved/",), extract=ExtractConfig(favour="recall"))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources.base import FileSource
from data.sources.extract import CODE_MODULES as EXTRACT_MODULES
from data.sources.extract import LIBRARIES as EXTRACT_LIBRARIES
from data.sources.extract import ExtractConfig, Extracted, ExtractionPool, Page, share_of_cores
from data.sources.limits import BombError, CorruptError, FetchError
from data.sources.text_files import read_whole


@dataclass(frozen=True, kw_only=True)
class HtmlFolder(FileSource):
    """HTML files, plain or compressed. Threads of forums: `data.sources.forum_pages`."""

    extract: ExtractConfig = field(default_factory=ExtractConfig)

    suffixes: ClassVar[tuple[str, ...]] = (".html", ".htm", ".xhtml")
    version: ClassVar[int] = 3
    files_per_shard: ClassVar[int] = 256
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.html_files",
        *EXTRACT_MODULES,
    )
    libraries: ClassVar[tuple[str, ...]] = EXTRACT_LIBRARIES

    def shards(self) -> Sequence[dict[str, Any]]:
        """256 files a shard, which knows of how many it is one: that is how extraction shares the cores."""
        found = super().shards()
        return [{**shard, "of": len(found)} for shard in found]

    def documents(self, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """One document a file, in file order."""
        workers = share_of_cores(shard.get("of", 1))
        opened: ExtractionPool[Mapping[str, Any]] = ExtractionPool(self.extract, workers=workers)
        with opened as pool:
            for file, found in pool.map((file, self._page(file)) for file in shard["files"]):
                if found.reason:
                    yield self.drop(file, None, found.reason, value=found.meta.pop("fault", None), **found.meta)
                else:
                    yield self.document(file, None, found.text, **found.meta)

    def _page(self, file: Mapping[str, Any]) -> Page | Extracted:
        try:
            with self.open(file) as stream:
                data, whole = read_whole(stream, self.extract.max_page_bytes)
        except (CorruptError, BombError) as error:
            return Extracted("", {"fault": str(error)}, "corrupt_file")
        except FetchError as error:
            return Extracted("", {"fault": str(error)}, "fetch_failed")
        if not whole:
            return Extracted("", {"fault": f"over {self.extract.max_page_bytes} bytes"}, "page_too_large")
        return Page(data)

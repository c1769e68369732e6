"""Stack Exchange dumps (`Posts.xml`): a question with its answers, best first, as one document.

StackExchangeSource(name="coffee", paths=("coffee.stackexchange.com/Posts.xml",), site="coffee.stackexchange.com")
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource
from data.sources.grouping import Groups, HeldFault
from data.sources.html_text import html_to_text
from data.sources.xml_records import local_name, parse_xml

FORMS = ("text", "messages", "preference")
QUESTION, ANSWER = "1", "2"
POST_TYPES = {"3": "orphaned_tag_wiki", "4": "tag_wiki_excerpt", "5": "tag_wiki", "6": "moderator_nomination",
              "7": "wiki_placeholder", "8": "privilege_wiki"}  # fmt: skip
# Contributions changed licence twice (stackoverflow.com/help/licensing); used where a row has no ContentLicense.
LICENCE_DATES = (("2011-04-08", "CC-BY-SA-2.5"), ("2018-05-02", "CC-BY-SA-3.0"), ("9999", "CC-BY-SA-4.0"))
KEPT = ("Id", "ParentId", "PostTypeId", "AcceptedAnswerId", "CreationDate", "Score", "Body", "Title", "Tags",
        "ContentLicense", "OwnerUserId")  # fmt: skip


def licence_of(row: Mapping[str, str]) -> str:
    """The row's own licence, or the one in force on its date, as an SPDX name."""
    if own := row.get("ContentLicense"):
        return own.replace("CC BY-SA ", "CC-BY-SA-")
    date = row.get("CreationDate", "0")
    return next((name for until, name in LICENCE_DATES if date < until), LICENCE_DATES[-1][1])


def _score(row: Mapping[str, str]) -> int:
    try:
        return int(row.get("Score", "0"))
    except ValueError:
        return 0


@dataclass(frozen=True, kw_only=True)
class StackExchangeSource(FileSource):
    """Questions and answers of one site's dump.

    site: host name, for URLs. min_answers: questions with fewer are counted drops.
    min_score: posts scored lower are counted drops (a question takes its answers with it).
    max_answers: answers in one document; those scored lowest are left out beyond it.
    form: "text"; "messages" adds the question and its best answer (accepted, else scored highest) to meta as a chat;
        "preference" adds the question with the answers scored highest and lowest as chosen and rejected.
    """

    site: str = ""
    min_answers: int = 0
    min_score: int | None = None
    max_answers: int = 200
    form: str = "text"

    suffixes: ClassVar[tuple[str, ...]] = ("posts.xml",)
    version: ClassVar[int] = 3
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        "data.sources.stack_exchange",
        "data.sources.grouping",
        "data.sources.html_text",
        "data.sources.xml_records",
    )
    libraries: ClassVar[tuple[str, ...]] = ("lxml",)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"{self.name}: form is {self.form!r}: expected one of {', '.join(FORMS)}")

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """Rows are read once, in file order; a document's meta["records"] says how many rows it is made of."""
        with Groups() as groups:
            with HeldFault() as fault:
                for offset, line in files.iter_lines(stream, self.limits):
                    item = self._row(shard, offset, line)
                    if isinstance(item, Dropped):
                        yield item
                    elif item is not None:
                        parent = item["ParentId"] if item["PostTypeId"] == ANSWER else item["Id"]
                        groups.put(parent, item)
            for parent, rows, count in groups.groups(self.max_answers * 10):
                yield from self._thread(shard, parent, rows, count)
            fault.give()

    def _row(self, shard: Mapping[str, Any], offset: int, line: bytes | int) -> dict[str, str] | Dropped | None:
        """A question or answer, a drop, or None for lines that hold no row."""
        if isinstance(line, int):
            return self.too_large(shard, offset, line)
        if not line.startswith(b"<row"):
            if re.match(rb"(\xef\xbb\xbf)?<(\?xml|/?posts)", line):
                return None
            return self.drop(shard, offset, "bad_xml", value="a line that is no <row>")
        try:
            element = parse_xml(line)
        except ValueError as error:
            return self.drop(shard, offset, "bad_xml", value=str(error))
        row = {str(key): str(element.attrib[key]) for key in KEPT if key in element.attrib}
        kind = row.get("PostTypeId", "")
        if local_name(element) != "row" or "Id" not in row or (kind == ANSWER and "ParentId" not in row):
            return self.drop(shard, offset, "missing_attribute")
        if kind not in (QUESTION, ANSWER):
            return self.drop(shard, f"{row['Id']}@{offset}", POST_TYPES.get(kind, "unknown_post_type"), value=kind)
        if self.min_score is not None and _score(row) < self.min_score:
            return self.drop(shard, f"{row['Id']}@{offset}", "low_score", value=_score(row), threshold=self.min_score)
        return {**row, "offset": str(offset)}

    def _thread(
        self, shard: Mapping[str, Any], parent: str, rows: list[dict[str, str]], count: int
    ) -> Iterator[Document | Dropped]:
        for extra in range(len(rows), count):
            yield self.drop(shard, f"{parent}-post-{extra}", "beyond_max_answers", threshold=self.max_answers)
        by_id: dict[str, dict[str, str]] = {}
        for row in rows:
            if by_id.setdefault(row["Id"], row) is not row:
                yield self._drop_row(shard, row, "repeated_id")
        rows = list(by_id.values())
        questions = [row for row in rows if row["PostTypeId"] == QUESTION]
        answers = [row for row in rows if row["PostTypeId"] == ANSWER]
        if not questions:
            for row in answers:
                yield self._drop_row(shard, row, "question_missing", value=parent)
            return
        question = questions[0]
        if len(answers) < self.min_answers:
            yield self.drop(
                shard,
                parent,
                "too_few_answers",
                value=len(answers),
                threshold=self.min_answers,
                records=1 + len(answers),
            )
            return
        accepted = question.get("AcceptedAnswerId")
        answers.sort(
            key=lambda row: (-_score(row), row["Id"] != accepted, int(row["Id"]) if row["Id"].isdigit() else 0)
        )
        left_out, answers = answers[self.max_answers :], answers[: self.max_answers]
        for row in left_out:
            yield self._drop_row(shard, row, "beyond_max_answers", threshold=self.max_answers)
        yield self._document(shard, parent, question, answers)

    def _drop_row(self, shard: Mapping[str, Any], row: dict[str, str], reason: str, **values: Any) -> Dropped:
        return self.drop(shard, f"{row['Id']}@{row['offset']}", reason, **values)

    def _document(
        self, shard: Mapping[str, Any], parent: str, question: dict[str, str], answers: list[dict[str, str]]
    ) -> Document | Dropped:
        title = question.get("Title", "").strip()
        parts = [f"# {title}"] if title else []
        parts.append(html_to_text(question.get("Body", "")))
        for row in answers:
            mark = " (accepted)" if row["Id"] == question.get("AcceptedAnswerId") else ""
            parts.append(f"## Answer{mark}\n\n{html_to_text(row.get('Body', ''))}")
        posts = [question, *answers]
        chat = self._chat(title, parts[-1 - len(answers)], question, answers)
        if chat is None:
            return self.drop(shard, parent, "no_two_scores", value=len(answers), records=len(posts))
        return self.document(
            shard,
            parent,
            "\n\n".join(part for part in parts if part),
            url=f"https://{self.site}/questions/{parent}" if self.site else None,
            title=title,
            date=question.get("CreationDate"),
            tags=re.findall(r"[^<>|]+", question.get("Tags", "")),
            licence=self.licence or max(licence_of(row) for row in posts),
            score=_score(question),
            answer_ids=[row["Id"] for row in answers],
            answer_scores=[_score(row) for row in answers],
            accepted=question.get("AcceptedAnswerId"),
            records=len(posts),
            group=f"{self.site or shard['key']}:{parent}",
            **chat,
        )

    def _chat(
        self, title: str, body: str, question: dict[str, str], answers: list[dict[str, str]]
    ) -> dict[str, Any] | None:
        """What the form adds to meta; None where a preference needs two answers of different scores."""
        asked = {"role": "user", "content": "\n\n".join(part for part in (title, body) if part)}

        def answered(row: dict[str, str]) -> list[dict[str, str]]:
            return [asked, {"role": "assistant", "content": html_to_text(row.get("Body", ""))}]

        if self.form == "messages":
            accepted = [row for row in answers if row["Id"] == question.get("AcceptedAnswerId")]
            return {"messages": answered((accepted or answers)[0]) if answers else [asked]}
        if self.form == "preference":
            if not answers or _score(answers[0]) == _score(answers[-1]):
                return None
            return {"chosen": answered(answers[0]), "rejected": answered(answers[-1])}
        return {}

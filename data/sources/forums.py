"""Forums and mailing lists: Discourse topics (JSON) and mbox archives. For saved pages see `data.sources.forum_pages`.

DiscourseSource(name="forum", paths=("topics/",))        one file a topic, as /t/ID.json gives it
MboxSource(name="list", paths=("2024-*.mbox.gz",))
"""

from __future__ import annotations

import email
import email.policy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources.base import FileSource
from data.sources.dialogue import MAX_TURNS, Turn, check_form, form_meta, turns_text
from data.sources.grouping import Groups, HeldFault
from data.sources.html_text import html_to_text
from data.sources.jsonl import as_list
from data.sources.stated import iso_date
from data.sources.text_files import decode_text

QUOTED = re.compile(r"^(?:>.*|On .{5,200} wrote:|-----\s*Original Message\s*-----.*)$")
WRAPPED = re.compile(r"^(On .{5,200})\n(.{0,80}wrote:)$", re.M)  # as programs fold it
LIST_AUTHOR = re.compile(r"^\S+ at \S+ \((.+)\)$")  # how Mailman hides addresses
SIGNATURE = re.compile(r"^-- ?$")
REPLY_PREFIX = re.compile(r"^(?:(?:re|aw|sv|antw|fwd?|tr)(?:\[\d+\])?:\s*|\[[^\]]{1,40}\]\s*)+", re.I)
MESSAGE_ID = re.compile(r"<[^<>\s]{1,500}>")
FROM_LINE = re.compile(rb"^From \S.*\d\d:\d\d")  # mbox: a message begins; text lines are escaped as >From


@dataclass(frozen=True, kw_only=True)
class DiscourseSource(FileSource):
    """Topics of a Discourse forum, one JSON file each. form: "text" or "messages".

    /t/ID.json holds the first 20 posts, /t/ID.json?print=true a thousand; meta["posts_elsewhere"] counts the others.
    """

    form: str = "text"

    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    version: ClassVar[int] = 3
    files_per_shard: ClassVar[int] = 64
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        *(f"data.sources.{name}" for name in ("forums", "dialogue", "html_text", "jsonl")),
    )
    libraries: ClassVar[tuple[str, ...]] = ("lxml",)

    def __post_init__(self) -> None:
        check_form(self.form)

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """The topic as one document; deleted, hidden and empty posts are counted drops."""
        data = self.read_file(stream)
        try:
            topic = json.loads(data)
            posts = topic["post_stream"]["posts"]
            if not isinstance(posts, list):
                raise TypeError("posts is no list")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            yield self.drop(shard, None, "bad_json", value=f"{type(error).__name__}: {error}"[:200])
            return
        turns: list[Turn] = []
        seen: set[str] = set()
        for number, post in enumerate(posts):
            reason, turn = _discourse_post(post, number)
            if turn is None or turn.id in seen:
                yield self.drop(shard, f"post-{number}", reason or "repeated_id")
            elif len(turns) >= MAX_TURNS:
                yield self.drop(shard, f"post-{number}", "beyond_max_turns", threshold=MAX_TURNS)
            else:
                turns.append(turn)
                seen.add(turn.id)
        title = str(topic.get("title") or "")
        if not turns:
            yield self.drop(shard, None, "empty_text", records=0)
            return
        yield self.document(
            shard,
            None,
            turns_text(turns, title),
            title=title,
            date=topic.get("created_at"),
            tags=[str(tag.get("name") if isinstance(tag, dict) else tag) for tag in as_list(topic.get("tags"))],
            topic=topic.get("id"),
            records=len(turns),
            posts_elsewhere=max(len(as_list(topic["post_stream"].get("stream"))) - len(posts), 0) or None,
            group=f"discourse:{topic.get('id') or shard['key']}",
            **form_meta(turns, title, self.form),
        )


def _discourse_post(post: Any, number: int) -> tuple[str, Turn | None]:
    if not isinstance(post, dict) or not isinstance(post.get("cooked"), str):
        return "not_a_post", None
    if post.get("deleted_at") or post.get("user_deleted") or post.get("hidden") or post.get("post_type", 1) != 1:
        return "deleted", None
    text = html_to_text(post["cooked"])
    score = post.get("like_count", post.get("score"))
    if not text:
        return "empty_text", None
    return "", Turn(
        str(post.get("id") or f"#{number}"),
        str(post.get("username") or "someone"),
        text,
        0,
        score if isinstance(score, int) else None,
    )


@dataclass(frozen=True, kw_only=True)
class MboxSource(FileSource):
    """Mailing list archives; messages joined to threads by their references.

    keep_quotes: whether lines quoted from an earlier message stay. form: "text" or "messages".
    """

    form: str = "text"
    keep_quotes: bool = False

    suffixes: ClassVar[tuple[str, ...]] = (".mbox", ".mbx", ".txt")
    version: ClassVar[int] = 4
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        *(
            f"data.sources.{name}"
            for name in ("forums", "dialogue", "grouping", "html_text", "text_files", "charset", "stated")
        ),
    )
    libraries: ClassVar[tuple[str, ...]] = ("lxml", "charset-normalizer")

    def __post_init__(self) -> None:
        check_form(self.form)

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """Threads in the order of their first message."""
        threads: dict[str, str] = {}  # message id -> thread; about 100 bytes a message
        with Groups() as groups:
            with HeldFault() as fault:
                for offset, data in self._messages(stream):
                    if isinstance(data, int):
                        yield self.too_large(shard, offset, data)
                        continue
                    message = self._message(data, offset)
                    if isinstance(message, str):
                        yield self.drop(shard, offset, message)
                        continue
                    known = [threads[reference] for reference in message["references"] if reference in threads]
                    thread = known[0] if known else next(iter(message["references"]), message["id"])
                    for identifier in (message["id"], *message["references"]):
                        threads.setdefault(identifier, thread)
                    groups.put(thread, message)
            for thread, messages, count in groups.groups(MAX_TURNS):
                for extra in range(len(messages), count):
                    yield self.drop(shard, f"{thread}-message-{extra}", "beyond_max_turns", threshold=MAX_TURNS)
                yield from self._thread(shard, messages)
            fault.give()

    def _messages(self, stream: Any) -> Iterator[tuple[int, bytes | int]]:
        """(offset, message or its size where it is too large)."""
        lines: list[bytes] = []
        offset = start = size = 0
        limit = self.limits.max_record_bytes
        while line := stream.readline(1 << 16):
            if FROM_LINE.match(line) and (not lines or lines[-1] in (b"\n", b"\r\n") or not size):
                if size:
                    yield start, b"".join(lines) if size <= limit else size
                lines, start, size = [], offset, 0
            offset += len(line)
            size += len(line)
            if size <= limit or line in (b"\n", b"\r\n"):
                lines.append(line)
            if size > limit:
                lines = lines[-1:]
        if size:
            yield start, b"".join(lines) if size <= limit else size

    def _message(self, data: bytes, offset: int) -> dict[str, Any] | str:
        """One message in plain values, or the reason why not."""
        if not FROM_LINE.match(data):
            return "not_a_message"
        try:
            message = email.message_from_bytes(data.partition(b"\n")[2], policy=email.policy.default)
            assert isinstance(message, EmailMessage)
            text = _body_text(message)
            headers = {name: str(message.get(name, "")) for name in ("Subject", "Date", "Message-ID")}
            author = _author(message)
            references = MESSAGE_ID.findall(f"{message.get('References', '')} {message.get('In-Reply-To', '')}")
        except Exception as error:  # the e-mail package raises many kinds on broken headers
            return "bad_message" if not isinstance(error, MemoryError) else "record_too_large"
        lines = []
        for line in (text if self.keep_quotes else WRAPPED.sub(r"\1 \2", text)).split("\n"):
            if SIGNATURE.match(line):
                break
            line = line.removeprefix(">") if line.startswith(">From ") else line
            if self.keep_quotes or not QUOTED.match(line.strip()):
                lines.append(line.rstrip())
        body = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
        if not body:
            return "empty_text"
        identifier = MESSAGE_ID.search(headers["Message-ID"])
        return {
            "id": identifier.group(0) if identifier else f"<{offset}>",
            "references": list(dict.fromkeys(references)),
            "title": " ".join(REPLY_PREFIX.sub("", headers["Subject"]).split()),
            "author": author,
            "date": iso_date(headers["Date"]),
            "text": body,
            "offset": offset,
        }

    def _thread(self, shard: Mapping[str, Any], messages: list[dict[str, Any]]) -> Iterator[Document | Dropped]:
        """The thread; of messages with one id, as lists get when they are sent to two addresses, the first counts."""
        by_id: dict[str, dict[str, Any]] = {}
        for message in messages:
            if by_id.setdefault(message["id"], message) is not message:
                yield self.drop(shard, message["offset"], "repeated_id", value=message["id"])
        yield self._document(shard, list(by_id.values()))

    def _document(self, shard: Mapping[str, Any], messages: list[dict[str, Any]]) -> Document | Dropped:
        first = messages[0]
        turns = [Turn(message["id"], message["author"], message["text"]) for message in messages]
        return self.document(
            shard,
            first["offset"],
            turns_text(turns, first["title"]),
            title=first["title"],
            date=first["date"],
            message_id=first["id"],
            offset=first["offset"],
            records=len(messages),
            group=f"mbox:{shard['key']}:{first['offset']}",
            **form_meta(turns, first["title"], self.form),
        )


def _author(message: EmailMessage) -> str:
    """The name in the From header, without the address. Mailman's form, which is none of mail, is read as it stands."""
    sent = next((str(value) for name, value in message.raw_items() if name.lower() == "from"), "")
    listed = LIST_AUTHOR.match(sent.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip())
    if listed:
        return str(email.policy.default.header_factory("Subject", listed.group(1)))
    return re.sub(r"\s*<[^<>]*>|[\"']", "", str(message.get("From", ""))).strip() or "someone"


def _body_text(message: EmailMessage) -> str:
    """The plain part, else the HTML part as text."""
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        return ""
    payload = part.get_payload(decode=True)
    text = _decoded(payload, part.get_content_charset()) if isinstance(payload, bytes) else ""
    return html_to_text(text) if part.get_content_type() == "text/html" else text.replace("\r\n", "\n")


def _decoded(payload: bytes, charset: str | None) -> str:
    """In the charset that the part names; where it names none, ASCII or a wrong one, as Mailman's archives do, in the
    one that fits."""
    try:
        return payload.decode("ascii" if charset is None else charset)
    except (LookupError, UnicodeError):
        pass
    try:
        return decode_text(payload)[0]
    except ValueError:
        return payload.decode("latin-1")

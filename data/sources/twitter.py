"""Twitter/X posts: stream and archive JSON of API v1.1 and v2; retweets folded into what they repeat, threads joined.

TwitterSource(name="tweets", paths=("stream-2021-06/*.json.bz2", "archive/tweets.js"))
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource
from data.sources.dialogue import MAX_TURNS, Turn, check_form, form_meta, turns_text, walk_tree
from data.sources.grouping import Groups, HeldFault
from data.sources.json_array import array_items
from data.sources.jsonl import as_dict, as_list
from data.sources.limits import BombError, CorruptError, TooLargeError
from data.sources.stated import iso_date

ARCHIVE_HEAD = re.compile(rb"\s*window\.YTD\.[A-Za-z0-9_.]{1,80}\s*=\s*")
LINK = re.compile(r"https://t\.co/\w+")
RETWEET = re.compile(r"RT @\w{1,20}: ")  # in an account's archive only the text tells, and it is cut short
LEADING_NAMES = re.compile(r"^(?:@\w{1,20}\s+)+")


def normal_post(record: Mapping[str, Any], users: Mapping[str, str]) -> dict[str, Any] | None:
    """One post of either API version in one shape; None for what is no post (deletions, limits, profiles).

    users: v2 keeps names apart from posts; author id -> name.
    """
    record = as_dict(record.get("tweet")) or record
    identifier = record.get("id_str") or record.get("id")
    text = _full_text(record)
    if identifier is None or text is None:
        return None
    user = as_dict(record.get("user"))
    author = str(record.get("author_id") or user.get("id_str") or "")
    references = {
        str(item.get("type")): str(item.get("id"))
        for item in as_list(record.get("referenced_tweets"))
        if isinstance(item, dict) and item.get("id")
    }
    parent = record.get("in_reply_to_status_id_str") or references.get("replied_to")
    metrics = as_dict(record.get("public_metrics"))
    likes = record.get("favorite_count", metrics.get("like_count", 0))
    return {
        "id": str(identifier),
        "author": str(user.get("screen_name") or users.get(author) or author or "someone"),
        "text": clean_post(text, record.get("entities")),
        "parent": str(parent) if parent else "",
        "retweets": references.get("retweeted", ""),
        "conversation": str(record.get("conversation_id") or ""),
        "date": str(record.get("created_at") or ""),
        "language": record.get("lang") if record.get("lang") not in (None, "und", "qme", "zxx") else None,
        "likes": int(likes) if str(likes).isdigit() else 0,
    }


def _full_text(record: Mapping[str, Any]) -> str | None:
    extended, note = record.get("extended_tweet"), record.get("note_tweet")
    for holder in (note, extended, record):
        if isinstance(holder, dict):
            for name in ("full_text", "text"):
                if isinstance(holder.get(name), str):
                    return str(holder[name])
    return None


def clean_post(text: str, entities: Any) -> str:
    """Entities resolved: shortened links become what they stand for, media links go."""
    for item in as_list(as_dict(entities).get("urls")):
        if isinstance(item, dict) and isinstance(item.get("url"), str) and isinstance(item.get("expanded_url"), str):
            text = text.replace(item["url"], item["expanded_url"])
    return html.unescape(LINK.sub("", text)).strip()


def first_post(replies: dict[str, str], name: str) -> str:
    """The uppermost post that is known above `name`; paths in `replies` are shortened on the way."""
    while (above := replies.get(name)) is not None:
        if (further := replies.get(above)) is not None:
            replies[name] = further
        name = above
    return name


def thread_of(replies: dict[str, str], name: str, parent: str) -> str:
    """The post that names the thread of `name`, whose answer to `parent` is noted. Posts may come in any order."""
    top, above = first_post(replies, name), first_post(replies, parent or name)
    if top != above:
        replies[top] = above
    return above


@dataclass(frozen=True, kw_only=True)
class TwitterSource(FileSource):
    """Posts as threads.

    form: "text" or "messages". keep_handles: False drops the names a reply starts with.
    min_turns: shorter threads are counted drops.
    """

    form: str = "text"
    keep_handles: bool = False
    min_turns: int = 1

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".jsonl", ".ndjson", ".js")
    version: ClassVar[int] = 5
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        *(f"data.sources.{name}" for name in ("twitter", "dialogue", "grouping", "json_array", "jsonl", "stated")),
    )

    def __post_init__(self) -> None:
        check_form(self.form)

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """Threads in the order of their first post; meta["records"] is how many posts each is made of."""
        replies: dict[str, str] = {}  # reply -> a post further up; about 200 bytes a reply
        with Groups() as groups:
            with HeldFault() as fault:
                for where, record in self._records(stream, shard):
                    if isinstance(record, Dropped):
                        yield record
                    else:
                        yield from self._put(shard, where, record, groups, replies)
            groups.merge((f"p{name}", f"p{first_post(replies, name)}") for name in list(replies))
            for thread, posts, count in groups.groups(10 * MAX_TURNS):
                yield from self._threads(shard, thread, posts, count)
            fault.give()

    def _records(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any] | Dropped]]:
        """(place, object or drop): one JSON value a line, or one array, as in an account's own archive."""
        head = stream.peek(256)[:256]
        start = ARCHIVE_HEAD.match(head)
        if start or head.lstrip()[:1] == b"[":
            stream.read(start.end() if start else 0)
            yield from self._array(stream, shard)
            return
        for offset, line in files.iter_lines(stream, self.limits):
            place = f"@{offset}"  # which no post is called
            if isinstance(line, int):
                yield place, self.too_large(shard, place, line)
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                yield place, self.drop(shard, place, "bad_json")
                continue
            yield place, value if isinstance(value, dict) else self.drop(shard, place, "not_an_object")

    def _array(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any] | Dropped]]:
        """The posts of an array up to its end or its first fault."""
        number = -1
        try:
            for number, (value, fault) in enumerate(array_items(stream, self.limits.max_record_bytes)):
                place = f"item-{number}"
                if fault:
                    yield place, self.drop(shard, place, "bad_json", value=fault)
                else:
                    yield place, value if isinstance(value, dict) else self.drop(shard, place, "not_an_object")
        except (CorruptError, BombError):
            raise
        except TooLargeError:
            limit = self.limits.max_record_bytes
            yield "file", self.drop(shard, "file", "record_too_large", value=f"over {limit}", threshold=limit)
        except (ValueError, RecursionError) as error:
            yield "file", self.drop(shard, "file", "bad_json", value=f"behind value {number}: {error}")

    def _put(
        self, shard: Mapping[str, Any], where: Any, record: dict[str, Any], groups: Groups, replies: dict[str, str]
    ) -> Iterator[Dropped]:
        """Keep the posts of one JSON value: a post, or a v2 page {"data", "includes"}."""
        included = as_dict(record.get("includes"))
        users = {
            str(user.get("id")): str(user.get("username"))
            for user in as_list(included.get("users"))
            if isinstance(user, dict) and user.get("username")
        }
        data = record.get("data", record)
        posts = [*(data if isinstance(data, list) else [data]), *as_list(included.get("tweets"))]
        for number, post in enumerate(posts):
            place = where if number == 0 else f"{where}.{number}"
            retweeted = post.get("retweeted_status") if isinstance(post, dict) else None
            if isinstance(retweeted, dict):  # v1.1 holds the repeated post whole: it counts, the repetition does not
                yield self.drop(shard, place, "retweet", value=str(retweeted.get("id_str") or ""))
                post, place = retweeted, f"{place}.retweeted"
            found = normal_post(post, users) if isinstance(post, dict) else None
            if found is None:
                yield self.drop(shard, place, "not_a_post")
            elif found["retweets"]:
                yield self.drop(shard, place, "retweet", value=found["retweets"])
            elif RETWEET.match(found["text"]):
                yield self.drop(shard, place, "retweet", value=found["text"].split(":")[0])
            elif found["conversation"]:
                groups.put(f"c{found['conversation']}", found)
            else:
                groups.put(f"p{thread_of(replies, found['id'], found['parent'])}", found)

    def _threads(
        self, shard: Mapping[str, Any], group: str, posts: list[dict[str, Any]], count: int
    ) -> Iterator[Document | Dropped]:
        for extra in range(len(posts), count):
            yield self.drop(shard, f"{group}-post-{extra}", "beyond_max_turns", threshold=10 * MAX_TURNS)
        by_id: dict[str, dict[str, Any]] = {}
        for number, post in enumerate(posts):
            if post["id"] in by_id:
                yield self.drop(shard, f"{post['id']}-again-{group}-{number}", "repeated_id")
            else:
                by_id[post["id"]] = post
        children: dict[str, list[str]] = {}
        for name, post in by_id.items():
            if post["parent"] in by_id and post["parent"] != name:
                children.setdefault(post["parent"], []).append(name)
        done: set[str] = set()
        roots = [name for name, post in by_id.items() if post["parent"] not in by_id or post["parent"] == name]
        for root in [*roots, *by_id]:  # the second part starts where replies answer each other in a ring
            if root not in done:
                chosen = [(name, depth) for name, depth in walk_tree(root, children) if name not in done]
                done.update(name for name, _ in chosen)
                yield self._document(shard, [(by_id[name], depth) for name, depth in chosen])

    def _document(self, shard: Mapping[str, Any], posts: list[tuple[dict[str, Any], int]]) -> Document | Dropped:
        root = posts[0][0]
        name = f"{root['id']}@{root['conversation']}" if root["conversation"] else root["id"]
        turns = []
        for post, depth in posts:
            text = post["text"] if self.keep_handles else LEADING_NAMES.sub("", post["text"])
            if text.strip():
                turns.append(Turn(post["id"], post["author"], text.strip(), depth, post["likes"]))
        if len(posts) < self.min_turns or not turns:
            reason = "too_few_turns" if turns else "empty_text"
            return self.drop(shard, name, reason, value=len(posts), threshold=self.min_turns, records=len(posts))
        alone = len({turn.speaker for turn in turns}) == 1 and self.form == "text"
        text = "\n\n".join(turn.text for turn in turns) if alone else turns_text(turns)
        return self.document(
            shard,
            name,
            text,
            date=iso_date(root["date"]),
            language=root["language"],
            author=root["author"],
            url=f"https://twitter.com/i/status/{root['id']}",
            records=len(posts),
            group=f"twitter:{root['id']}",
            **form_meta(turns, "", self.form),
        )

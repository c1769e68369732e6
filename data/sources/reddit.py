"""Reddit dumps (zstd NDJSON of submissions and comments): threads rebuilt, deleted and bot posts dropped, score kept.

    RedditSource(name="reddit", paths=("RS_2023-01.zst", "RC_2023-01.zst"), min_score=2)

Files that differ only in RS_/RC_ or _submissions/_comments are one shard, because their threads belong together.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from data.document import Document, Dropped
from data.sources import files
from data.sources.base import FileSource
from data.sources.dialogue import MAX_TURNS, Turn, best_path, check_form, form_meta, turns_text, walk_tree
from data.sources.grouping import Groups
from data.sources.jsonl import parse_object
from data.sources.limits import BombError, CorruptError, FetchError
from data.sources.stated import iso_date

DELETED = {"[deleted]", "[removed]", "[deleted by user]", "[removed by reddit]", "[ removed by reddit ]"}
BOT_NAME = re.compile(r"^(automoderator|.*[-_]?bot|.*_bot_.*|remindmebot|sneakpeekbot|wikitextbot|tweetposter)$", re.I)
BOT_PHRASES = ("i am a bot", "i'm a bot", "beep boop", "this action was performed automatically", "this bot was")
NOT_BOTS = re.compile(r"(robot|abbot|talbot|cabot)$", re.I)
WINDOW = 1 << 31  # bytes: the dumps are compressed with --long=31
PAIR = re.compile(r"^(.*?)(?:RS|RC)([_-]?\d{4}-\d{2}.*)$|^(.*?)_?(?:submissions|comments)(\..*)?$")


@dataclass(frozen=True, kw_only=True)
class RedditSource(FileSource):
    """Threads of Reddit.

    form: "text" (the whole tree in turns) or "messages" (the best-scored path as chat messages).
    min_score: posts scored lower are counted drops; subreddits: those kept, () for all.
    over_18: whether posts marked so are kept. min_turns: shorter threads are counted drops.
    """

    form: str = "text"
    min_score: int | None = None
    subreddits: tuple[str, ...] = ()
    over_18: bool = False
    min_turns: int = 1

    version: ClassVar[int] = 3
    suffixes: ClassVar[tuple[str, ...]] = ("", ".ndjson", ".jsonl", ".json")
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        *(f"data.sources.{name}" for name in ("reddit", "dialogue", "grouping", "jsonl", "stated")),
    )

    def __post_init__(self) -> None:
        check_form(self.form)

    def shards(self) -> Sequence[dict[str, Any]]:
        """Files whose threads belong together: {"key", "parts": [{"url", "key"}, ...]}."""
        pairs: dict[str, list[dict[str, str]]] = {}
        for entry in self.entries():
            found = PAIR.match(entry.key)
            name = "".join(part or "" for part in found.groups()) if found else entry.key
            pairs.setdefault(name, []).append({"url": entry.url, "key": entry.key})
        return [{"key": name or "threads", "parts": parts} for name, parts in pairs.items()]

    def documents(self, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """Threads in the order of their first post; meta["records"] is how many posts each is made of."""
        with Groups() as groups:
            for part in shard["parts"]:
                yield from self._posts(shard, part, groups)
            for thread, posts, count in groups.groups(10 * MAX_TURNS):
                yield from self._thread(shard, thread, posts, count)

    def _posts(self, shard: Mapping[str, Any], part: Mapping[str, str], groups: Groups) -> Iterator[Dropped]:
        try:
            with files.open_stream(part["url"], self.limits, max_window_bytes=WINDOW) as stream:
                for offset, line in files.iter_lines(stream, self.limits):
                    yield from self._post(shard, f"{part['key']}@{offset}", line, groups)
        except (CorruptError, BombError, FetchError) as error:
            reason = "fetch_failed" if isinstance(error, FetchError) else "corrupt_file"
            yield self.drop(shard, f"{part['key']}:end", reason, value=str(error))

    def _post(self, shard: Mapping[str, Any], where: str, line: bytes | int, groups: Groups) -> Iterator[Dropped]:
        """One line: put among its thread's posts, or dropped."""
        if isinstance(line, int):
            yield self.too_large(shard, where, line)
            return
        record, reason = parse_object(line)
        post = _post(record) if record is not None else None
        if post is None:
            yield self.drop(shard, where, reason or "not_a_post")
        elif (why := self._refusal(post)) is not None:
            yield self.drop(shard, where, why, value=post["score"] if why == "low_score" else None, post=post["id"])
        else:
            groups.put(post["thread"], post)

    def _refusal(self, post: Mapping[str, Any]) -> str | None:
        """Why a post is not wanted, or None."""
        if self.subreddits and post["subreddit"].lower() not in {name.lower() for name in self.subreddits}:
            return "other_subreddit"
        if post["over_18"] and not self.over_18:
            return "over_18"
        if post["text"].strip().lower() in DELETED or (
            post["author"] in ("[deleted]", "") and not post["text"].strip()
        ):
            return "deleted"
        if is_bot(post["author"], post["text"]):
            return "bot"
        if self.min_score is not None and post["score"] < self.min_score:
            return "low_score"
        return None

    def _thread(
        self, shard: Mapping[str, Any], thread: str, posts: list[dict[str, Any]], count: int
    ) -> Iterator[Document | Dropped]:
        for extra in range(len(posts), count):
            yield self.drop(shard, f"{thread}-post-{extra}", "beyond_max_turns", threshold=10 * MAX_TURNS)
        by_id: dict[str, dict[str, Any]] = {}
        for number, post in enumerate(posts):
            if post["id"] in by_id:
                yield self.drop(shard, f"{post['id']}-again-{number}", "repeated_id")
            else:
                by_id[post["id"]] = post
        root = by_id.get(thread)
        if root is None or not root["is_submission"]:
            for post in by_id.values():
                yield self.drop(shard, post["id"], "submission_missing", value=thread)
            return
        children: dict[str, list[str]] = {}
        for post in by_id.values():
            children.setdefault(post["parent"], []).append(post["id"])
        for replies in children.values():
            replies.sort(key=lambda reply: (-by_id[reply]["score"], by_id[reply]["created"], reply))
        if self.form == "messages":
            chosen = [(name, depth) for depth, name in enumerate(best_path(thread, children, _scores(by_id)))]
        else:
            chosen = list(walk_tree(thread, children))
        kept = {name for name, _ in chosen}
        for name in by_id:
            if name not in kept:
                reachable = self.form == "messages" and by_id[name]["parent"] in by_id
                yield self.drop(shard, name, "not_on_best_path" if reachable else "parent_missing")
        yield self._document(shard, thread, [by_id[name] for name, _ in chosen], [depth for _, depth in chosen])

    def _document(
        self, shard: Mapping[str, Any], thread: str, posts: list[dict[str, Any]], depths: list[int]
    ) -> Document | Dropped:
        root = posts[0]
        turns = [
            Turn(post["id"], post["author"] or "[deleted]", post["text"].strip(), depth, post["score"])
            for post, depth in zip(posts, depths)
            if post["text"].strip()
        ]
        if len(posts) < self.min_turns or not turns:
            reason = "too_few_turns" if turns else "empty_text"
            return self.drop(shard, thread, reason, value=len(posts), threshold=self.min_turns, records=len(posts))
        return self.document(
            shard,
            thread,
            turns_text(turns, root["title"]),
            title=root["title"],
            subreddit=root["subreddit"],
            url=f"https://www.reddit.com/comments/{thread.removeprefix('t3_')}",
            date=iso_date(root["created"]) if root["created"] else None,
            score=root["score"],
            records=len(posts),
            group=f"reddit:{thread}",
            **form_meta(turns, root["title"], self.form),
        )


def _scores(posts: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {name: post["score"] for name, post in posts.items()}


def is_bot(author: str, text: str) -> bool:
    """Whether a post was made by a program: its name ends in bot, or it says so."""
    if BOT_NAME.match(author) and not NOT_BOTS.search(author):
        return True
    end = text[-1500:].lower()
    return any(phrase in end for phrase in BOT_PHRASES)


def _post(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """A submission or comment in one shape; None for what is neither. Names carry Reddit's prefixes t1_ and t3_."""
    identifier, body = record.get("id"), record.get("body")
    is_submission = body is None and isinstance(record.get("title"), str)
    if not isinstance(identifier, str) or not (is_submission or isinstance(body, str)):
        return None
    thread = f"t3_{identifier}" if is_submission else record.get("link_id")
    if not isinstance(thread, str):
        return None
    score = record.get("score")
    created = str(record.get("created_utc") or 0)
    parent = record.get("parent_id")
    return {
        "id": thread if is_submission else f"t1_{identifier}",
        "thread": thread,
        "parent": "" if is_submission else parent if isinstance(parent, str) else thread,
        "is_submission": is_submission,
        "title": html.unescape(record["title"]).strip() if is_submission else "",
        "text": html.unescape(str(record.get("selftext") or "") if is_submission else str(body)),
        "author": str(record.get("author") or ""),
        "subreddit": str(record.get("subreddit") or ""),
        "score": score if isinstance(score, int) else 0,
        "created": int(float(created)) if re.fullmatch(r"\d{1,12}(\.\d+)?", created) else 0,
        "over_18": bool(record.get("over_18")),
    }

"""Saved pages of phpBB, vBulletin, XenForo, SMF and forums marked up with schema.org: posts as speaker turns.

    ForumPageSource(name="forum", paths=("saved/",), form="messages")

Extraction of main text (`HtmlFolder`) looks for one article and loses most posts of a thread, so a page whose posts
are marked up in a known way is read here; any other is a counted drop `no_posts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from lxml import etree, html

from data.document import Document, Dropped
from data.sources.base import FileSource
from data.sources.dialogue import MAX_TURNS, Turn, check_form, form_meta, turns_text
from data.sources.extract_methods import decode_page, language_hint
from data.sources.html_text import element_to_text, tidy


def _has(name: str) -> str:
    """XPath: the class attribute holds this word."""
    return f"contains(concat(' ', normalize-space(@class), ' '), ' {name} ')"


class Markup(NamedTuple):
    """How a forum's software marks a post: XPath of the posts, and in each of author and text."""

    posts: str
    author: str
    text: str


MARKUPS = {
    "schema.org": Markup(
        "//*[contains(@itemtype, 'schema.org/DiscussionForumPosting') or contains(@itemtype, 'schema.org/Comment')]",
        ".//*[@itemprop='author']//*[@itemprop='name'] | .//*[@itemprop='author']",
        ".//*[@itemprop='text' or @itemprop='articleBody']",
    ),
    "xenforo": Markup(f"//article[{_has('message')}]", "@data-author", f".//*[{_has('bbWrapper')}]"),
    "phpbb3": Markup(
        f"//div[{_has('post')} and .//*[{_has('postbody')}]]",
        f".//*[{_has('author')}]//strong | .//*[{_has('username')} or {_has('username-coloured')}]",
        f".//*[{_has('postbody')}]//*[{_has('content')}]",
    ),
    "phpbb2": Markup(f"//tr[.//span[{_has('postbody')}] and .//span[{_has('name')}]][not(.//tr//tr)]",
                     f".//span[{_has('name')}]", f".//span[{_has('postbody')}]"),
    "smf": Markup(f"//div[{_has('post_wrapper')}]", f".//*[{_has('poster')}]//h4//a", f".//*[{_has('inner')}]"),
    "vbulletin": Markup(
        "//*[starts-with(@id, 'post_message_')]/ancestor::*[(self::table or self::li or self::div)"
        " and (starts-with(@id, 'post') and translate(substring-after(@id, 'post'), '_0123456789', '') = '')][1]",
        f".//a[{_has('bigusername')} or {_has('username')}]",
        ".//*[starts-with(@id, 'post_message_')]",
    ),
}  # fmt: skip


def forum_posts(markup: str) -> tuple[str, str, list[Turn]]:
    """(software, title, posts in page order); ("", title, []) where no known markup is found."""
    parser = html.HTMLParser(no_network=True, remove_comments=True, remove_pis=True, huge_tree=False, encoding="utf-8")
    try:
        root = etree.fromstring(markup.replace("\x00", "").encode("utf-8", "replace"), parser)
    except (etree.XMLSyntaxError, ValueError, AssertionError):
        root = None
    if root is None:
        return "", "", []
    found = root.xpath("//title")
    title = " ".join("".join(found[0].itertext()).split()) if found else ""
    for software, known in MARKUPS.items():
        turns = [turn for post in root.xpath(known.posts) if (turn := _turn(post, known)) is not None]
        if turns:
            return software, title, turns
    return "", title, []


def _turn(post: etree._Element, known: Markup) -> Turn | None:
    bodies, authors = post.xpath(known.text), post.xpath(known.author)
    text = tidy(element_to_text(bodies[0])) if bodies else ""
    names = [author if isinstance(author, str) else "".join(author.itertext()) for author in authors]
    name = next((" ".join(name.split()) for name in names if name.strip()), "someone")
    return Turn(str(post.get("id") or ""), name, text) if text else None


@dataclass(frozen=True, kw_only=True)
class ForumPageSource(FileSource):
    """One document a saved page of a thread. form: "text" or "messages"."""

    form: str = "text"

    suffixes: ClassVar[tuple[str, ...]] = (".html", ".htm", ".php")
    version: ClassVar[int] = 3
    files_per_shard: ClassVar[int] = 64
    code_modules: ClassVar[tuple[str, ...]] = (
        *FileSource.code_modules,
        *(f"data.sources.{name}" for name in ("forum_pages", "dialogue", "charset", "extract_methods", "html_text")),
    )
    libraries: ClassVar[tuple[str, ...]] = ("lxml", "w3lib", "charset-normalizer")

    def __post_init__(self) -> None:
        check_form(self.form)

    def read(self, stream: Any, shard: Mapping[str, Any]) -> Iterator[Document | Dropped]:
        """The thread's page as one document."""
        page, encoding = decode_page(self.read_file(stream), "")
        software, title, turns = forum_posts(page)
        for number in range(MAX_TURNS, len(turns)):
            yield self.drop(shard, f"post-{number}", "beyond_max_turns", threshold=MAX_TURNS)
        turns = turns[:MAX_TURNS]
        if not turns:
            yield self.drop(shard, None, "no_posts", title=title)
            return
        meta: dict[str, Any] = {"title": title, "software": software, "encoding": encoding}
        meta.update(
            records=len(turns),
            group=shard["key"],
            language_hint=language_hint(page),
            **form_meta(turns, title, self.form),
        )
        yield self.document(shard, None, turns_text(turns, title), **meta)

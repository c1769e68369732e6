"""Texts that several tests share, and one document for each reason to drop."""

from __future__ import annotations

from data.clean.basic import Alphabetic, Characters, MetaIs, Normalise, WordLength, Words
from data.clean.c4 import C4
from data.clean.code import CodeQuality, Licence
from data.clean.fineweb import FineWeb
from data.clean.gopher_quality import GopherQuality
from data.clean.gopher_repetition import GopherRepetition
from data.clean.language import LanguageIs, LanguageStopWords
from data.clean.perplexity import PerplexityIs
from data.clean.pii import PersonalData
from data.clean.refinedweb import RefinedWebLines
from data.clean.toxicity import ScoreIs, WordList
from data.document import Document

PROSE = (
    "The keeper of the lock opens the gate when the water on both sides has come to the same height. "
    "Boats that wait below have seen the light change and move with care into the narrow chamber of stone. "
    "Nobody hurries, because the walls leave little room to turn and the ropes must be held by hand. "
    "When the last boat is in, the lower gate closes and the sluice above lets the river through. "
    "It takes about ten minutes to rise to the upper pool, and that is time enough to talk about the weather. "
    "Then the keeper writes a line in his book, and the boats go on towards the hills."
)
NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()  # noqa: SIM905


def document(text: str, **more: object) -> Document:
    return Document(id="d", text=text, source="s", **more)  # type: ignore[arg-type]


def varied(count: int, *, stop: str = "the of") -> str:
    """`count` words that repeat no n-gram of two."""
    return " ".join(f"{stop if i == 0 else ''} word{i}x".strip() for i in range(count))


def lettered(count: int) -> str:
    """`count` different words of letters."""
    return " ".join("q" + "".join("abcdefghij"[int(c)] for c in f"{i:05d}") for i in range(count))


_STOP = "the of and to have with "
# (step, text or document, reason): each reason that a step of data.clean can give, reached by one document.
REASONS: tuple[tuple[object, Document, str], ...] = (
    (Normalise(), document(" \n\t "), "empty"),
    (Words(), document("too few words here"), "too_few_words"),
    (Words(maximum=60), document(varied(61)), "too_many_words"),
    (Characters(minimum=5), document("abc"), "too_short"),
    (Characters(maximum=5), document("abcdef"), "too_long"),
    (WordLength(), document("a b c d e f"), "short_words"),
    (WordLength(maximum=10), document("antidisestablishmentarianism everywhere"), "long_words"),
    (Alphabetic(), document("1234 5678 ab"), "low_alphabetic_ratio"),
    (MetaIs(field="type", allowed=("post",)), document("x", meta={"type": "ad"}), "meta_not_allowed"),
    (GopherQuality(), document("too few words here"), "too_few_words"),
    (GopherQuality(max_words=60), document(lettered(70)), "too_many_words"),
    (GopherQuality(), document("a b " * 40), "short_words"),
    (GopherQuality(), document(_STOP + "internationalisation " * 60), "long_words"),
    (GopherQuality(), document(_STOP + "# word " * 60), "too_many_hashes"),
    (GopherQuality(), document(_STOP + "word... " * 60), "too_many_ellipses"),
    (GopherQuality(variant="dolma"), document(_STOP + "word… " * 60), "too_many_symbols"),
    (GopherQuality(), document("\n".join(f"- {_STOP}{w} more words" for w in NUMBERS)), "too_many_bullets"),
    (GopherQuality(), document("\n".join(f"{_STOP}{w} and more of it..." for w in NUMBERS)), "too_many_ellipsis_lines"),
    (GopherQuality(), document(_STOP + "word 12345 67890 " * 40), "few_alphabetic_words"),
    (GopherQuality(), document(lettered(60)), "few_stop_words"),
    (GopherRepetition(), document("same\n\nsame\n\nsame\n\nother"), "duplicate_paragraphs"),
    (
        GopherRepetition(),
        document("\n\n".join(["a long paragraph here", *"bcdef", "a long paragraph here"])),
        "duplicate_paragraph_chars",
    ),
    (GopherRepetition(), document("same\nsame\nsame\nother"), "duplicate_lines"),
    (
        GopherRepetition(),
        document("\n".join(["a long line stands here", *"bcdef", "a long line stands here"])),
        "duplicate_line_chars",
    ),
    (GopherRepetition(), document("big deal " * 5 + lettered(20)), "top_2_gram"),
    (GopherRepetition(top_ngrams=((3, 0.18),)), document("big deal now " * 4 + lettered(20)), "top_3_gram"),
    (GopherRepetition(top_ngrams=((4, 0.16),)), document("big deal now then " * 3 + lettered(20)), "top_4_gram"),
    *(
        (
            GopherRepetition(top_ngrams=(), duplicate_ngrams=((n, 0.10),)),
            document(f"{lettered(n)} and {lettered(n)} or else"),
            f"duplicate_{n}_grams",
        )
        for n in range(5, 11)
    ),
    (C4(), document("x" * 190_001), "too_long"),
    (C4(), document("function () { return the value of this. }\nThis is { a line of some words."), "curly_bracket"),
    (C4(), document("This is Lorem ipsum in a line of some words."), "lorem_ipsum"),
    (C4(variant="dolma"), document("Please enable JavaScript in this browser."), "javascript"),
    (C4(), document("Only one sentence stands in here."), "too_few_sentences"),
    (FineWeb(), document(" \n "), "no_lines"),
    (FineWeb(), document("a title without an end\nanother one of them"), "few_ended_lines"),
    (FineWeb(), document("Short.\nShorter.\nShortest."), "too_many_short_lines"),
    (FineWeb(), document(f"{PROSE}\n{PROSE}"), "duplicate_line_chars"),
    (FineWeb(max_short_lines=1.0), document("Ab.\n\nCd.\n\nEf.\n\nGh."), "too_many_newlines"),
    (RefinedWebLines(), document("12 likes\n34 shares\nSome words stay here."), "too_many_words_removed"),
    (CodeQuality(), document("x = 1"), "too_short"),
    (CodeQuality(max_chars=200), document("value = other\n" * 20), "too_long"),
    (CodeQuality(), document("function(a,b){return a+b};" * 20), "minified"),
    (CodeQuality(), document("short = 1\n" * 200 + "y" * 1001), "long_line"),
    (CodeQuality(), document("{}()[]<>;;\n" * 20), "few_letters"),
    (CodeQuality(min_letters=0.0), document("1, 2, 3, 4.5, 6, 7, 8,\n" * 20), "data_like"),
    (CodeQuality(), document("# Generated by protoc. DO NOT EDIT.\n" + "value = other\n" * 20), "generated"),
    (CodeQuality(), document("value = other\n" * 20, meta={"path": "app/vendor/x.py"}), "vendored"),
    (Licence(allow_missing=False), document("x"), "no_licence"),
    (Licence(), document("x", meta={"licence": "GPL-3.0-only"}), "licence_not_allowed"),
    (WordList(), document("shit fuck bitch and so on"), "toxic_words"),
    (PersonalData(max_found=1), document("a@x.org and b@x.org"), "too_much_personal_data"),
    (LanguageIs(), document("1", scores={"language": "und", "language_probability": 0.0}), "no_language"),
    (LanguageIs(), document("x", scores={"language": "unknown:RUNIC", "language_probability": 0.0}), "unknown_script"),
    (LanguageIs(), document("x", scores={"language": "fr", "language_probability": 1.0}), "wrong_language"),
    (LanguageIs(), document("x", scores={"language": "en", "language_probability": 0.5}), "uncertain_language"),
    (LanguageStopWords(), document("xyzzy plugh", scores={"language": "de"}), "few_stop_words"),
    (ScoreIs(score="quality", minimum=0.5), document("x", scores={"quality": 0.1}), "low_quality"),
    (ScoreIs(score="toxicity", maximum=0.5), document("x", scores={"toxicity": 0.9}), "high_toxicity"),
    (PerplexityIs(), document("x", scores={"perplexity": 1000.5}), "high_perplexity"),
    (PerplexityIs(minimum=5), document("x", scores={"perplexity": 2.0}), "low_perplexity"),
)

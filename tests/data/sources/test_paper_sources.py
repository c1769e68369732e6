"""Papers: LaTeX sources in every packing, OAI and PubMed records, JATS articles."""

from __future__ import annotations

import gc
import gzip
import io
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from data.sources.arxiv import ArxivSource, arxiv_id, paper_text
from data.sources.files import list_files
from data.sources.jats import JatsSource
from data.sources.latex_source import Expander, resolve_inputs, strip_comments
from data.sources.latex_text import latex_to_text
from data.sources.limits import ReadLimits
from data.sources.oai import OaiSource, read_metadata
from data.sources.pubmed import PubmedSource
from data.sources.xml_records import cut_records, parse_xml
from tests.data.sources.helpers import read, reasons


def headings(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.startswith("#")]


@pytest.mark.real_data
def test_the_emcee_paper_keeps_its_sections_and_loses_its_comments(real_data: Path) -> None:
    path = real_data / "arxiv" / "emcee-ms.tex"
    (document,), drops = read(ArxivSource(name="a", paths=(str(path),)))
    assert not drops and document.meta["title"] == "emcee: The MCMC Hammer"
    assert [h for h in headings(document.text) if h.startswith("## ")] == [
        "## Abstract",
        "## Introduction",
        "## The Algorithm",
        "## Tests",
        "## Discussion & Tips",
        "## Installation",
        "## Issues & Contributions",
        "## Online Documentation",
    ]
    for comment in ("has to be before amssymb", "math symbols", "adsabs.harvard.edu", "Citation alias"):
        assert comment not in document.text
    assert "% pip install emcee" in document.text  # in a listing, where % is no comment
    assert "The algorithm behind emcee has several advantages" in document.text  # \this is a macro of a macro
    assert "$\\sim N^2$" in document.text and "g(z^{-1}) = z \\, g(z)," in document.text
    assert "bibitem" not in document.text and "Akeret" not in document.text and "\\cite" not in document.text
    assert "König" not in document.text and "\\begin{" not in document.text.replace("\\begin{array}", "")


def test_inputs_comments_macros_and_what_never_ends() -> None:
    files = {
        "main.tex": "\\documentclass{article}\n\\newcommand{\\me}[1]{Me #1}\\def\\x#1#2{#2#1}\\begin{document}\n"
        "\\section{One}% gone\n\\input{parts/a}\\input{missing}\\include{main}\n"
        "\\me{too}, \\x{b}{a}. 5\\% off\n\\end{document}",
        "parts/a.tex": "Inside. \\input{b}",
        "parts/b.tex": "Deeper.",
        "other.tex": "\\documentclass{article} no document",
    }
    text, meta = paper_text(files)
    assert text == "## One\n\nInside. Deeper. Me too, ab. 5% off"
    assert meta["main_file"] == "main.tex" and meta["missing_inputs"] == ["missing", "main"]
    bomb = "".join(f"\\def\\{chr(97 + i)}{{{(chr(92) + chr(98 + i) + ' ') * 10}}}" for i in range(12))
    start = time.monotonic()
    Expander().expand(bomb + "\\a")
    Expander().expand("\\def\\a{\\a\\a}\\a")
    latex_to_text("\\begin{a}" * 20_000 + "{" * 20_000 + "$" * 999 + "\\[" * 999)
    resolve_inputs({"m.tex": "\\input{m}" * 1000}, "m.tex")
    assert time.monotonic() - start < 20
    start = time.monotonic()
    latex_to_text("\\label" * 80_000 + "x" * 4_000_000)
    assert time.monotonic() - start < 10


def test_parts_of_a_paper_in_folders_and_parts_that_are_switched_off() -> None:
    files = {
        "main.tex": "\\documentclass{article}\\begin{document}\n\\import{parts/}{a}\n\n\\subimport*{parts/}{c}\n\n"
        "\\iffalse Old. \\ifdraft x\\else y\\fi More.\\else New.\\fi\n\n"
        "$a \\iff b$\n\n\\subfile{parts/d}\n\nLast.\\end{document}",
        "parts/a.tex": "One. \\input{b}",
        "parts/b.tex": "Two.",
        "parts/c.tex": "Three. \\input{../shared/e}",
        "shared/e.tex": "Shared.",
        "parts/d.tex": "\\documentclass[../main]{subfiles}\\begin{document}Four.\\end{document}",
    }
    text, meta = paper_text(files)
    assert text == "One. Two.\n\nThree. Shared.\n\nNew.\n\n$a \\iff b$\n\nFour.\n\nLast." and not meta["missing_inputs"]
    start = time.monotonic()
    assert len(strip_comments("\\iffalse " * 200_000)) == 9 * 200_000 and time.monotonic() - start < 10


def test_citations_of_every_package_and_formulas_in_columns() -> None:
    cited = r"It \onlinecite{a} is \supercite[see][p.~3]{b} \citeyearpar{c} \parencites[1]{d}{e} so \Citet{f}{\bf too}."
    assert latex_to_text(cited) == "It is so [f]too."
    block = r"\begin{IEEEeqnarray}{rCl} a &=& b \end{IEEEeqnarray}"
    assert latex_to_text(block) == "$$\na &=& b\n$$"
    assert latex_to_text(r"\begin{tabular}{ll} \multicolumn{2}{c}{All} \\ a & b \end{tabular}") == "All\na | b"


def test_a_paper_is_freed_when_the_next_is_read() -> None:
    """Papers are long and make few objects, so what waits for Python's collector of cycles waits a hundred papers."""
    files = {"m.tex": "\\documentclass{a}\\begin{document}\\input{a}\\input{m}\\x", "a.tex": "\\def\\x{y}words"}
    paper_text(files)
    gc.collect()
    gc.disable()
    try:
        paper_text(files)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_latex_details() -> None:
    assert strip_comments("a % b\nc\n\n% d\ne 5\\% f\\\\% g\n") == "a c\n\ne 5\\% f\\\\"
    assert strip_comments("one % two\n\nthree") == "one \n\nthree"
    assert latex_to_text("K\\\"onig \\'{e}t\\'e \\c{c}a na\\\"{\\i}ve \\o") == "König été ça naïve ø"
    assert latex_to_text("``a'' --- b~c \\emph{d \\textbf{e}} f\\footnote{g}") == "“a” — b c d e f (g)"
    assert latex_to_text("\\begin{itemize}\\item one\n\\item two\\end{itemize}") == "- one\n- two"
    assert latex_to_text("\\begin{tabular}{ll}a & b \\\\ \\hline c & d\\end{tabular}") == "a | b\nc | d"
    assert latex_to_text("x \\[ y \\] $a_1$ \\(b\\)") == "x\n\n$$\ny\n$$\n\n$a_1$ $b$"
    assert (
        latex_to_text("see Eq.~\\ref{eq:one} \\citep[e.g.][]{x}, \\url{http://a.b/c\\_d}")
        == "see Eq. one, http://a.b/c_d"
    )
    assert latex_to_text("\\begin{figure}[h]\\includegraphics[width=1cm]{x}\\caption{A map.}\\end{figure}") == "A map."


def _tar(members: dict[str, bytes], **links: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return stream.getvalue()


PAPER = b"\\documentclass{a}\\title{T}\\begin{document}\\section{S} Text of the paper.\\end{document}"


@pytest.mark.real_data
def test_every_packing_of_papers_and_their_metadata(tmp_path: Path, real_data: Path) -> None:
    one = gzip.compress(
        _tar({"ms.tex": PAPER, "fig.png": b"\x89", "../evil.tex": PAPER, "/abs.tex": PAPER}, link="/etc/passwd")
    )
    bulk = _tar(
        {
            "1706/1706.05371.gz": one,
            "1706/1706.09418.gz": gzip.compress(PAPER),
            "1706/1706.00001.pdf": b"%PDF",
            "1706/1706.00002.gz": b"\x1f\x8bbroken",
            "1706/1706.00003.gz": gzip.compress(b"no latex here"),
        }
    )
    (tmp_path / "arXiv_src_1706_001.tar").write_bytes(bulk)
    (tmp_path / "1707.00874.tar.gz").write_bytes(one)
    metadata = (str(real_data / "arxiv" / "arxiv-physics-hep-ex.xml"),)
    documents, drops = read(ArxivSource(name="a", paths=(str(tmp_path),), metadata=metadata))
    assert [d.meta["arxiv_id"] for d in documents] == ["1707.00874", "1706.05371", "1706.09418"]
    assert documents[1].meta["title"].startswith("Evaluation of Silicon") and documents[1].text.endswith(
        "Text of the paper."
    )
    assert documents[1].meta["licence"] == "http://arxiv.org/licenses/nonexclusive-distrib/1.0/"
    assert reasons(drops) == {
        "path_climbs_out": 4,  # two in the paper of its own, two in the one in the bulk tar
        "link_in_archive": 2,
        "pdf_only": 1,
        "corrupt_record": 1,
        "bad_latex": 1,
    }
    assert arxiv_id("hep-th9901001.gz") == "hep-th/9901001" and arxiv_id("x/2001.00001v2.tar.gz") == "2001.00001"


def test_what_is_dropped_inside_a_paper_of_a_bulk_tar_is_counted(tmp_path: Path) -> None:
    paper = _tar({"ms.tex": PAPER, "../up.tex": PAPER, "big.tex": b"x" * 9000}, link="/etc/passwd")
    cut = _tar({"../up.tex": PAPER, "ms.tex": PAPER * 50})[:3000]
    bulk = {"2001/2001.00001.gz": gzip.compress(paper), "2001/2001.00002.gz": gzip.compress(cut)}
    (tmp_path / "arXiv_src_2001_001.tar").write_bytes(_tar(bulk))
    limits = ReadLimits(max_record_bytes=40_000)
    documents, drops = read(ArxivSource(name="a", paths=(str(tmp_path),), limits=limits))
    assert [d.meta["arxiv_id"] for d in documents] == ["2001.00001"] and "big" not in documents[0].text
    assert reasons(drops) == {"path_climbs_out": 2, "link_in_archive": 1, "corrupt_record": 1}
    assert all("2001/2001.0000" in drop.document.id for drop in drops)


def test_tar_headers_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    """tarfile keeps a long name whole: here one of 4 MB, in a small file."""
    long_name = tarfile.TarInfo("x" * (4 << 20)).tobuf(tarfile.GNU_FORMAT)
    sparse = tarfile.TarInfo("hole.tex")
    sparse.type = tarfile.GNUTYPE_SPARSE
    attributes = tarfile.TarInfo("y.tex")
    attributes.pax_headers = {"comment": "z" * (4 << 20)}
    for number, header in enumerate((long_name, sparse.tobuf(), attributes.tobuf(tarfile.PAX_FORMAT))):
        (tmp_path / f"{number}.tar").write_bytes(_tar({"a.tex": PAPER})[:1024] + header + bytes(1024))
    documents, drops = read(ArxivSource(name="a", paths=(str(tmp_path),)))
    assert not documents and reasons(drops) == {"corrupt_file": 3}
    _, drops = read(JatsSource(name="j", paths=(str(tmp_path),)))
    assert reasons(drops) == {"corrupt_file": 3}


def test_truncated_and_huge_archives_end(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(_tar({"a.tex": PAPER * 100})[:3000])
    (tmp_path / "b.tar").write_bytes(_tar({f"{i}.tex": b"x" for i in range(50)}))
    (tmp_path / "c.tar").write_bytes(_tar({"ms.tex": PAPER, "big.tex": b"x" * 50_000}))
    documents, drops = read(
        ArxivSource(name="a", paths=(str(tmp_path),), limits=ReadLimits(max_members=20, max_record_bytes=20_000))
    )
    assert len(documents) == 1 and reasons(drops) == {"corrupt_file": 1, "expands_too_far": 1, "record_too_large": 1}


@pytest.mark.real_data
def test_oai_records(real_data: Path) -> None:
    documents, drops = read(OaiSource(name="o", paths=(str(real_data / "arxiv" / "arxiv-physics-hep-ex.xml"),)))
    assert [d.meta["arxiv_id"] for d in documents] == ["1706.05371", "1706.09418", "1707.00874"] and not drops
    assert (
        documents[0].meta["authors"][0] == "Tyler Anderson"
        and documents[1].meta["doi"] == "10.1140/epjc/s10052-017-5414-4"
    )
    assert documents[0].text.startswith(
        "# Evaluation of Silicon Photomultipliers for use as Photosensors in Liquid Xenon"
    )


def test_metadata_of_many_papers_is_not_held_in_memory(tmp_path: Path) -> None:
    record = """<record><header><identifier>oai:arXiv.org:{0}</identifier></header><metadata>
<arXiv xmlns="http://arxiv.org/OAI/arXiv/"><id>{0}</id><created>2001-01-01</created><title>Paper {0}</title>
<authors><author><keyname>Doe</keyname><forenames>Number {0}</forenames></author></authors>
<categories>hep-ex cs.LG</categories><abstract>Text.</abstract></arXiv></metadata></record>"""
    names = [f"{2000 + number // 5000}.{number % 5000:05d}" for number in range(10_000)]
    (tmp_path / "oai.xml").write_text(f"<r>{''.join(map(record.format, names))}</r>")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "2001.00007.tex").write_bytes(PAPER)
    tracemalloc.start()
    known = read_metadata(tuple(list_files((str(tmp_path / "oai.xml"),), ())), ReadLimits())
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 2_000_000  # 5.7 MB as objects
    assert known.get("2001.00007")["title"] == "Paper 2001.00007" and known.get("\udcff") == {}
    (document,), _ = read(
        ArxivSource(name="a", paths=(str(tmp_path / "papers"),), metadata=(str(tmp_path / "oai.xml"),))
    )
    assert document.meta["authors"] == ["Number 2001.00007 Doe"] and document.meta["categories"] == ["hep-ex", "cs.LG"]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "first", "sections"),
    [
        (
            "1472-6831-8-11.nxml",
            "# The Dutch version of the Oral Health Impact Profile",
            ["Abstract", "Background", "Methods", "Results", "Discussion", "Conclusion", "Authors' contributions",
             "Pre-publication history"],
        ),
        (
            "ehp-116-1694.nxml",
            "# Dietary Exposure to 2,2′,4,4′",
            ["Abstract", "Materials and Methods", "Results", "Discussion"],
        ),
        (
            "pone.0000217.nxml",
            "# Quantifying Organismal Complexity",
            ["Abstract", "Introduction", "Model and Results", "Discussion", "Methods", "Acknowledgments"],
        ),
    ],
)  # fmt: skip
def test_jats_sections_in_order(real_data: Path, name: str, first: str, sections: list[str]) -> None:
    (document,), drops = read(JatsSource(name="j", paths=(str(real_data / "jats" / name),)))
    assert not drops and document.text.startswith(first)
    assert [h[3:] for h in headings(document.text) if h.startswith("## ")] == sections
    assert "[]" not in document.text and "()" not in document.text and "</" not in document.text
    if name.startswith("1472"):
        assert (
            "Total OHIP-NL (49) | 44.1 | 40.2 | 0.9 | 0.8" in document.text and document.meta["licence"] == "CC-BY-2.0"
        )
        assert "Table 1: Mean total scores" in document.text


@pytest.mark.real_data
def test_chapters_of_books_are_pubmed_records_too(tmp_path: Path) -> None:
    article = "<PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>Bees</ArticleTitle><Abstract>"
    article += "<AbstractText>They hum.</AbstractText></Abstract></Article></MedlineCitation></PubmedArticle>"
    chapter = "<PubmedBookArticle><BookDocument><PMID>2</PMID><Book><BookTitle>Genes</BookTitle><PubDate><Year>1993"
    chapter += "</Year></PubDate></Book><ArticleTitle>Ataxia</ArticleTitle><Language>eng</Language><Abstract>"
    chapter += "<AbstractText>It is rare.</AbstractText></Abstract></BookDocument></PubmedBookArticle>"
    (tmp_path / "p.xml").write_text(f"<PubmedArticleSet>{chapter}{article}{chapter[:90]}</PubmedArticleSet>")
    (book, bee), (cut,) = read(PubmedSource(name="p", paths=(str(tmp_path / "p.xml"),)))
    assert book.text == "# Ataxia\n\nIt is rare." and bee.text == "# Bees\n\nThey hum."
    about = {name: book.meta[name] for name in ("pmid", "book", "date", "language")}
    assert about == {"pmid": "2", "book": "Genes", "date": "1993", "language": "en"}
    assert cut.drop.reason == "record_too_large"


def test_pubmed_records_and_a_pmc_tar(real_data: Path, tmp_path: Path) -> None:
    (document,), _ = read(PubmedSource(name="p", paths=(str(real_data / "jats" / "pubmed-29768149.xml"),)))
    assert document.meta["date"] == "2018-05-17" and "METHODS: We conducted a 52-week" in document.text
    articles = {f"PMC/{path.name}": path.read_bytes() for path in sorted((real_data / "jats").glob("*.nxml"))}
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(_tar({**articles, "PMC/bad.xml": b"<article><unclosed>"})))
    documents, drops = read(JatsSource(name="j", paths=(str(tmp_path),)))
    assert len(documents) == 3 and reasons(drops) == {"bad_xml": 1}


ARTICLE = (
    "<article xml:lang='EN'><front><article-meta><article-id pub-id-type='pmc'>{0}</article-id><title-group>"
    "<article-title>Title {0}</article-title></title-group><pub-date><year>2008</year></pub-date>"
    "<pub-date><year>2008</year><month>4</month><day>3</day></pub-date><pub-date><string-date>May</string-date>"
    "</pub-date></article-meta></front><body><p>Text {0}.</p></body></article>"
)


def test_files_of_many_articles_and_dates_of_which_one_is_whole(tmp_path: Path) -> None:
    articles = ARTICLE.format(1) + ARTICLE.format(2)
    head = '<?xml version="1.0"?>\n<!DOCTYPE x PUBLIC "a" "b">\n'
    (tmp_path / "a.xml").write_text(f"{head}<pmc-articleset>{articles}</pmc-articleset>")
    (tmp_path / "b.xml").write_text(f"<articles>{ARTICLE.format(3)}{ARTICLE.format(4)[:-40]}</articles>")
    (tmp_path / "c.xml").write_text(f"<other>{articles}</other>")
    documents, drops = read(JatsSource(name="j", paths=(str(tmp_path),)))
    assert [d.text for d in documents] == [f"# Title {i}\n\nText {i}." for i in (1, 2, 3)]
    assert {(d.meta["date"], d.meta["language"]) for d in documents} == {("2008-04-03", "en")}
    assert len(drops) == 2


def test_records_are_cut_right_wherever_chunks_end() -> None:
    class Slow(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return super().read(7)

    data = (
        b"<r>"
        + b"".join(b"<rec id='%d'>%s</rec>\n" % (i, b"x" * (i * 13 % 90)) for i in range(50))
        + b"<rec>never closed"
    )
    found = list(cut_records(Slow(data), "rec", ReadLimits(max_record_bytes=80)))  # type: ignore[arg-type]
    assert [data[o : o + 4] for o, _ in found] == [b"<rec"] * 51
    assert sum(isinstance(r, bytes) for _, r in found) == sum(
        len(b"<rec id='%d'></rec>" % i) + i * 13 % 90 <= 80 for i in range(50)
    )
    assert all(r == data[o : o + len(r)] for o, r in found if isinstance(r, bytes))


def test_xml_is_parsed_without_entities_or_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(ValueError, match="entity"):
        parse_xml(f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]><a>&x;</a>'.encode())
    assert parse_xml(b"<a>&alpha;&nbsp;&amp;&undefined;</a>").text == "α\xa0&&undefined;"
    with pytest.raises(ValueError):
        parse_xml(b"<a>" * 100_000)
    for junk in (b"", b"\x00", b"<", b"plain", b"<a></b>"):
        with pytest.raises(ValueError):
            parse_xml(junk)

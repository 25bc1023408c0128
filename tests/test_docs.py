"""The documentation: links and anchors lead somewhere; the site builds without a warning and asks no other host."""

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import sdpl
from sdpl.cli import main

ROOT = Path(sdpl.__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
MARKDOWN = MarkdownIt()
PROMISED = [  # what other people's code relies on
    "sdpl.runtime.Recognizer",
    "sdpl.runtime.Recognizer.open",
    "sdpl.runtime.Recognizer.scores",
    "sdpl.runtime.Recognizer.recognize",
    "sdpl.runtime.Recognition",
    "sdpl.bundle.Bundle",
    "sdpl.errors.UserError",
    "sdpl.export.build.export",
    "sdpl.train.loop.train",
    "sdpl.train.losses.partial_asymmetric_loss",
    "sdpl.train.partial.mask_labels",
    "sdpl.train.metrics.mean_average_precision",
    "sdpl.train.metrics.f1_metrics",
    "sdpl.kernels.reference.bilinear_attention_pool",
    "sdpl.scale.RecognizerActor",
    "sdpl.server.supervisor.Supervisor",
]


def tokens(page: Path) -> Iterator[Token]:
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub and MyST make them: lower case, no punctuation, hyphens for spaces."""
    found: set[str] = set()
    parsed = list(tokens(page))
    for before, inline in pairwise(parsed):
        if before.type == "heading_open":
            text = "".join(child.content for child in inline.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            repeated = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", known) is not None for known in found)
            found.add(f"{slug}-{repeated}" if repeated else slug)
    return found


def broken(page: Path) -> list[str]:
    """The page's links and pictures that lead to no file, or to no heading."""
    targets = [str(t.attrs.get("href") or t.attrs.get("src")) for t in tokens(page) if t.type in ("link_open", "image")]
    wrong = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_anchors_lead_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_and_a_missing_anchor_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    other = "# One\n## A `heading`, with more: 2nd!\n## One\n"
    (tmp_path / "other.md").write_text(other)
    good = "[a](other.md) [b](other.md#a-heading-with-more-2nd) [c](other.md#one-1) [d](https://a.org/x) `[no](link)`\n"
    page.write_text(good + "\n    [no](link) in code\n")
    assert broken(page) == []
    page.write_text(good + "[e](gone.md) [f](other.md#gone) ![g](gone.png) [h](#here)\n")
    assert broken(page) == ["gone.md", "other.md#gone", "gone.png", "#here"]


def build(source: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-c", str(DOCS), "-W", "--keep-going", "-q", source, out]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_the_site_builds_has_what_others_rely_on_and_fetches_nothing(tmp_path):
    pytest.importorskip("sphinx", reason="the extra `docs` builds the site")
    site = tmp_path / "site"
    built = build(DOCS, site)
    assert built.returncode == 0, built.stderr
    reference = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    assert [name for name in PROMISED if f'id="{name}"' not in reference] == []
    assert [name for name in main.commands if f'id="sdpl-{name}"' not in reference] == []
    fetched = r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//[^\"']+"
    styles = r"(?:url\(\s*[\"']?|@import\s+[\"'])(?:https?:)?//[^\"')]+"
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 50
    found = {f: re.findall(f"{fetched}|{styles}", f.read_text(encoding="utf-8")) for f in pages}
    assert {f.name: urls for f, urls in found.items() if urls} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[there](gone.md)", "gone.md"),
        ("[there](#gone)", "gone"),
        ("```{eval-rst}\n:py:class:`sdpl.runtime.Gone`\n```", "sdpl.runtime.Gone"),
    ],
)
def test_the_build_fails_on_what_leads_nowhere(tmp_path, text, complaint):
    pytest.importorskip("sphinx", reason="the extra `docs` builds the site")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A page\n\n{text}\n")
    built = build(tmp_path / "docs", tmp_path / "out")
    assert built.returncode != 0
    assert complaint in built.stderr

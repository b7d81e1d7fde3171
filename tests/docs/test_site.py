"""The site: its tabs, its links, its search, and what a reader sees of the reference."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tokenprune as tp

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<page>[\w./-]+\.md)(?:#[\w-]+)?\)")
FROM_HOME = (
    *("five-minutes", "ratio", "from-fastv", "own-metric", "paper-authors", "faq", "service", "lmms-eval"),
    *("serving", "scaling", "cli", "notebooks", "citation"),
)
ROLE = re.compile(r":[a-z]+:(?:`|<code>)")


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, which names a Python function."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda _loader, suffix, _node: suffix)


def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    return loaded


def pages() -> set[str]:
    """All pages, named from `docs/`."""
    return {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def linked(page: str) -> set[str]:
    """The pages that the text of a page links to."""
    text = FENCED.sub("", (DOCS / page).read_text(encoding="utf-8"))
    folder = (DOCS / page).parent
    return {(folder / match["page"]).resolve().relative_to(DOCS).as_posix() for match in LINK.finditer(text)}


def named_in(entry: Any) -> list[str]:
    """The pages of a part of the navigation, in order."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in named_in(part)]


def test_tabs_are_these() -> None:
    tabs = [name for entry in config()["nav"] for name in entry]
    assert tabs == ["Start", "Guides", "Concepts", "Methods", "Results", "Reference", "Contributing"]


def test_the_navigation_has_every_page_once() -> None:
    named = named_in(config()["nav"])
    assert sorted(named) == sorted(pages())


def test_every_page_is_reached_from_the_text_of_the_home_page() -> None:
    reached, ahead = {"index.md"}, ["index.md"]
    while ahead:
        new = linked(ahead.pop()) - reached
        reached |= new
        ahead += new
    assert reached == pages()


@pytest.mark.parametrize("page", FROM_HOME)
def test_the_home_page_itself_links_to(page: str) -> None:
    assert f"{page}.md" in linked("index.md")


def test_citations_are_those_of_readme() -> None:
    """Home and the page on citation show the part of the README, which another test compares with the paper."""
    part = (ROOT / "README.md").read_text(encoding="utf-8").split("[start:bibtex] -->")[1].split("<!-- --8<-- [end")[0]
    assert part.count("@misc{") == part.count("@software{") == 1
    for page in ("index.md", "citation.md"):
        assert '--8<-- "README.md:bibtex"' in (DOCS / page).read_text(encoding="utf-8")
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    plain = part.replace("{", "").replace("}", "")
    assert f"title = {cff['title']}," in plain
    assert f"version = {cff['version']}," in plain
    (paper,) = cff["references"]
    assert f"title = {paper['title']}," in plain
    assert f"url = {paper['url']}" in plain
    assert all(f"{author['family-names']}, {author['given-names']}" in plain for author in paper["authors"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_roles_are_recognised() -> None:
    """The test below can fail: docstrings have roles, and this is how a page would show them."""
    assert ROLE.search(tp.Run.__doc__ or "")
    assert ROLE.search("see :meth:<code>Run.using</code>")


@pytest.mark.slow
@pytest.mark.long
def test_no_page_shows_a_role(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not (found := ROLE.search(text)), f"{page.relative_to(site)}: {text[found.start() : found.end() + 60]}"
        assert "autoref " not in text, f"{page.relative_to(site)}: a link that is none"


@pytest.mark.slow
def test_roles_become_links(site: Path) -> None:
    """To the page that has the name, also from another one; what no page has is code."""
    text = (site / "api" / "apply" / "index.html").read_text(encoding="utf-8")
    assert re.search(
        r'<a class="autorefs autorefs-internal" href="#tokenprune\.Run\.using"><code>Run\.using</code></a>', text
    )
    tune = (site / "api" / "tune" / "index.html").read_text(encoding="utf-8")
    assert re.search(r'href="\.\./apply/#tokenprune\.Method"><code>tokenprune\.Method</code></a>', tune)

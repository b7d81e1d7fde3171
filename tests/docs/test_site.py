"""The site: its tabs, its links, its search, and what a reader sees of the reference."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import tokenprune as tp
from tests.support.browser import launched

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<page>[\w./-]+\.md)(?:#[\w-]+)?\)")
FROM_HOME = (
    *("five-minutes", "ratio", "from-fastv", "own-metric", "paper-authors", "faq", "service", "lmms-eval"),
    *("serving", "scaling", "cli", "notebooks", "citation"),
)
#: What a reader looks for -> the section that has it: page, a part of its address, and words of its text.
SOUGHT = {
    "streaming": ("service/#streaming", "TextIteratorStreamer"),
    "StaticCache": ("faq/#staticcache-and-other-caches", "decode steps"),
    "FastAPI": ("service/#with-fastapi", "upload"),
    "FAQ": ("faq/", "Short answers"),
    "citation": ("citation/#what-to-write-beside-a-citation", "version of tokenprune"),
    "jupyter": ("notebooks/", "JupyterLab"),
    "lmms-eval": ("lmms-eval/", "lmms-eval"),
    "vLLM": ("serving/", "vLLM"),
    "run_in_executor": ("service/#threads-tasks-and-contexts", "loop.run_in_executor"),  # behind a dot
}
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


def test_the_menu_groups_methods_as_their_page_does() -> None:
    (methods,) = [entry["Methods"] for entry in config()["nav"] if "Methods" in entry]
    menu = {title: names for entry in methods if isinstance(entry, dict) for title, names in entry.items()}
    index = (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    groups = {}
    for section in index.split("\n## ")[1:]:
        names = [f"methods/{name}.md" for name in re.findall(r"^- \[([\w-]+)\]", section, re.M)]
        if names:
            groups[section.partition("\n")[0]] = names
    assert menu == groups


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
def test_a_function_is_shown_where_a_module_has_its_name(site: Path) -> None:
    text = (site / "api" / "apply" / "index.html").read_text(encoding="utf-8")
    part = text.split('<h3 id="tokenprune.apply"')[1].split("<h3 ")[0]
    assert "<h4" not in part, "the module and all that it holds"
    assert "model" in part
    assert "method" in part
    assert "__copy__" not in text


@pytest.mark.slow
def test_roles_become_links(site: Path) -> None:
    """To the page that has the name, also from another one; what no page has is code."""
    text = (site / "api" / "apply" / "index.html").read_text(encoding="utf-8")
    assert re.search(
        r'<a class="autorefs autorefs-internal" href="#tokenprune\.Run\.using"><code>Run\.using</code></a>', text
    )
    tune = (site / "api" / "tune" / "index.html").read_text(encoding="utf-8")
    assert re.search(r'href="\.\./apply/#tokenprune\.Method"><code>tokenprune\.Method</code></a>', tune)


@pytest.mark.slow
@pytest.mark.parametrize("word", SOUGHT)
def test_the_search_index_has_what_readers_look_for(site: Path, word: str) -> None:
    """In a section with its own text: a heading, a menu or a list of links alone would not do."""
    address, text = SOUGHT[word]
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    (section,) = [section for section in index["docs"] if section["location"] == address]
    shown = re.sub(r"<[^>]+>", "", f"{section['title']} {section['text']}")
    assert word.lower() in shown.lower()
    assert text in re.sub(r"<[^>]+>", "", section["text"])


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the built site is served: its search needs a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
def test_readers_find_the_pages(address: str) -> None:
    """As a reader does: the word is typed, and the page is among the first three that are shown."""
    with launched() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        for word, (place, _) in SOUGHT.items():
            page.goto(address)
            page.click("label.md-search__icon[for=__search]", force=True)
            page.fill("input.md-search__input", word)
            page.wait_for_selector(".md-search-result__item a")
            links = page.locator(".md-search-result__item > a").evaluate_all("links => links.map(link => link.href)")
            found = [link.removeprefix(address).split("?")[0].split("#")[0] for link in links[:3]]
            assert place.partition("#")[0] in found, f"{word}: {found}"


@pytest.mark.slow
def test_the_menu_is_visible(address: str) -> None:
    """On a screen of 1,200 px without a click; on a telephone behind its button."""
    with launched() as browser:
        for width in (1200, 400):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(address + "methods/fastv/")
            wide = width == 1200
            button = page.locator("label.md-header__button[for=__drawer]")
            assert button.is_visible() != wide
            assert page.locator(".md-tabs").get_by_text("Guides").is_visible() == wide
            if not wide:
                button.click()
                page.wait_for_timeout(500)  # it slides in
            box = page.locator(".md-sidebar--primary").bounding_box()
            assert box["x"] >= 0
            assert page.locator(".md-sidebar--primary a[href$='pyramiddrop/']").is_visible()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_a_telephone(site: Path, address: str, scheme: str) -> None:
    """Tables and code scroll in their own boxes; the text follows the scheme of the system."""
    with launched() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)
        wide = []
        for file in sorted(site.rglob("index.html")):
            page.goto(address + file.relative_to(site).as_posix(), wait_until="domcontentloaded")
            if page.evaluate("document.documentElement.scrollWidth") > 400:
                wide.append(file.relative_to(site).as_posix())
        assert not wide
        shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", shown)[:3])) < 300) == (scheme == "dark"), shown

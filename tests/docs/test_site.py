"""The site is built from docs/ without a warning, has every page in its menu, and requests nothing from other hosts."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# Attributes that a browser fetches by itself, unlike a link that a reader may follow.
FETCHED = {"src", "srcset", "data", "poster", "action", "formaction", "background"}
FETCHING_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
    "manifest",
}
FOREIGN = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


class Page(HTMLParser):
    """The URLs that a browser fetches to show a page. A diagram counts: its script is on another host."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        links = tag == "link" and FETCHING_LINKS & set(values.get("rel", "").split())
        self.urls += [values[name] for name in values if (name in FETCHED or (name == "href" and links))]
        self.urls += [place for each in IN_STYLES.findall(values.get("style", "")) for place in each]
        if "mermaid" in values.get("class", "").split():
            self.urls.append("https://, for a diagram")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.urls += [place for each in IN_STYLES.findall(data) for place in each]


def external_requests(site: Path) -> Iterator[tuple[str, str]]:
    """(file, URL) of each request to another host by a page or a style sheet."""
    for path in sorted(site.rglob("*.html")):
        yield from ((path.name, place) for place in Page(path.read_text()).urls if FOREIGN.match(place))
    for path in sorted(site.rglob("*.css")):
        found = (place for each in IN_STYLES.findall(path.read_text()) for place in each)
        yield from ((path.name, place) for place in found if FOREIGN.match(place))


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """The site of a copy of the repository's pages."""
    pytest.importorskip("material", reason="mkdocs-material is not installed; do: make setup-dev")
    # Suppresses a message of the theme about its own maintenance.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A copy of mkdocs.yml and docs/ that a test may change."""
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "mkdocs.yml").write_bytes((ROOT / "mkdocs.yml").read_bytes())
    for path in (ROOT / "docs").rglob("*"):
        if path.is_file():
            place = folder / path.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_works_without_a_network(pages, tmp_path):
    built = build(pages, tmp_path / "site")
    assert built.returncode == 0, built.stderr
    shown = {path.relative_to(tmp_path / "site").with_suffix(".md") for path in (tmp_path / "site").rglob("*.html")}
    assert shown - {Path("404.md")} == {path.relative_to(pages / "docs") for path in (pages / "docs").rglob("*.md")}
    assert len(shown) >= 20
    assert list(external_requests(tmp_path / "site")) == []


@pytest.mark.slow
def test_a_broken_link_stops_the_build(pages, tmp_path):
    (pages / "docs" / "extra.md").write_text("# Extra\n\n[no page](none.md) and [no place](pipeline.md#nowhere)\n")
    built = build(pages, tmp_path / "site")
    assert built.returncode != 0
    for name in ("extra.md", "'none.md'", "#nowhere"):
        assert name in built.stderr


def menu_pages(tree: object) -> Iterator[str]:
    """The pages of a menu."""
    if isinstance(tree, str):
        yield tree
    for each in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from menu_pages(each)


def test_every_page_is_in_the_menu():
    menu = list(menu_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert len(menu) == len(set(menu)) >= 20
    assert set(menu) == pages


@pytest.mark.parametrize(
    "markup",
    [
        '<script src="https://x.y/z.js"></script>',
        '<img src="//x.y/z.png">',
        '<link rel="preconnect" href="https://fonts.x" crossorigin>',
        '<link rel="stylesheet" href="HTTP://x.y/z.css">',
        '<p style="background: url(https://x.y/z.png)">',
        "<style>@import 'https://x.y/z.css';</style>",
        '<pre class="mermaid">',
    ],
)
def test_external_requests_are_found(tmp_path, markup):
    (tmp_path / "a.html").write_text(f"<html>{markup}</html>")
    assert len(list(external_requests(tmp_path))) == 1


def test_links_and_local_files_are_allowed(tmp_path):
    own = '<a href="https://x.y">x</a><link rel="canonical" href="https://x.y"><img src="a.png"><script src="b.js">'
    (tmp_path / "a.html").write_text(own)
    (tmp_path / "a.css").write_text("p { background: url(a.png) } q { background: url(data:image/png;base64,x) }")
    assert list(external_requests(tmp_path)) == []
    (tmp_path / "a.css").write_text("@font-face { src: url('https://x.y/z.woff2') }")
    assert list(external_requests(tmp_path)) == [("a.css", "https://x.y/z.woff2")]

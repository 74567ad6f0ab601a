"""The site builds without a warning, asks nothing of another host, and every link in it leads somewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LOADING = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}


class Page(HTMLParser):
    """What a page links to and what it loads, and the places in it that links may name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.places |= {given.get("id"), given.get("name")} - {None}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get("rel") in ("canonical", "alternate", "prev", "next"):
            return
        self.loads += [given[name] for kind, name in LOADING if kind == tag and given.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Page]:
    """Every page of the site by its file."""
    folder = tmp_path_factory.mktemp("site")
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "mkdocs.yml").write_text(yaml.safe_dump({**settings, "site_dir": "built"}))
    command = [Path(sys.executable).parent / "zensical", "build", "--clean", "--strict", "-f", folder / "mkdocs.yml"]
    built = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    return {path.resolve(): Page(path) for path in (folder / "built").rglob("*.html")}


def test_every_document_is_a_page(site):
    documents = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    titles = {path.parent.name for path in site}
    assert len(site) == len(documents) + 1  # and the page for what is not there
    assert {path.name for path in documents if path.name != "index"} <= titles
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [str(path) for path in documents if f": {path}.md" not in listed] == []


def test_every_link_leads_to_a_place_in_the_site(site):
    broken = []
    for path, page in site.items():
        for link in page.links + page.loads if path.name == "index.html" else []:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            place = unquote(parts.fragment)
            if not target.exists() or (place and target in site and place not in site[target].places):
                broken.append(f"{path.parent.name}: {link}")
    assert broken == []


def test_no_page_asks_anything_of_another_host(site):
    assert {load for page in site.values() for load in page.loads if urlsplit(load).netloc} == set()

"""Documents that cannot rot: what they point at exists, and the defaults they state are the real ones."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHOD = ROOT / "docs" / "method.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = re.compile(r"`([\w/]+\.py)::([\w.]+)`")
STATED_DEFAULT = re.compile(r"^\| `([\w/]+\.py)::([\w.]+)` \| (.+?) \|", re.MULTILINE)
SETTINGS = METHOD.read_text(encoding="utf-8").partition("## Settings")[2]
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# NAME in a path stands for the name of what is added.
FOUND = set(re.findall(r"`((?:src|tests|docs)/[\w/.]+)`", CONTRIBUTING))
CONTRIBUTOR_PATHS = sorted(path for path in FOUND if "NAME" not in path)


def names_in(text: str) -> list[str]:
    return sorted({"::".join(found) for found in REFERENCE.findall(text)})


def resolve(path: str, name: str) -> object:
    """Return what `path::name` is; a field of a settings or data class is its name."""
    assert (ROOT / "src" / "bmtpt" / path).is_file(), f"there is no {path}"
    found: object = importlib.import_module("bmtpt." + path.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        fields = getattr(found, "model_fields", None) or getattr(found, "__dataclass_fields__", {})
        found = fields[part] if part in fields else getattr(found, part)
    return found


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path, root: Path) -> list[str]:
    broken = []
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        place = (document.parent / file).resolve() if file else document
        inside = place.exists() and place.is_relative_to(root)  # what is outside is not there in a clone
        if not inside or (anchor and anchor not in anchors(place)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("reference", names_in(METHOD.read_text(encoding="utf-8")))
def test_what_the_method_page_points_at_exists(reference):
    resolve(*reference.split("::"))


@pytest.mark.parametrize(("path", "name", "default"), STATED_DEFAULT.findall(SETTINGS))
def test_the_method_page_states_the_real_default(path, name, default):
    assert str(resolve(path, name).default) == default


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_repository_resolve(document):
    assert broken_links(document, ROOT) == []


@pytest.mark.parametrize("path", CONTRIBUTOR_PATHS)
def test_a_file_that_contributors_are_sent_to_exists(path):
    assert (ROOT / path).exists()


def test_a_stale_name_and_a_dead_link_would_be_found(tmp_path):
    with pytest.raises(AttributeError):
        resolve("posterior/svgd.py", "no_such_function")
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[good](#a-heading) [bad](#other) [gone](gone.md) [outside](../) [web](https://x.y)")
    assert broken_links(page, tmp_path) == ["#other", "gone.md", "../"]
    assert len(STATED_DEFAULT.findall(SETTINGS)) > 10
    assert len(names_in(METHOD.read_text(encoding="utf-8"))) > 30
    assert len(CONTRIBUTOR_PATHS) > 10

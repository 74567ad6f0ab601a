"""Documents that cannot rot: what they point at exists, and the defaults they state are the real ones.

The root's `conftest.py` runs their blocks; here is the list of what it leaves out.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from bmtpt.cli import app
from bmtpt.studies import load_study
from reader import LEFT_OUT, is_left_out, statements

ROOT = Path(__file__).parents[1]
METHOD = ROOT / "docs" / "method.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = re.compile(r"`([\w/]+\.py)::([\w.]+)`")
STATED_DEFAULT = re.compile(r"^\| `([\w/]+\.py)::([\w.]+)` \| (.+?) \|", re.MULTILINE)
SETTINGS = METHOD.read_text(encoding="utf-8").partition("## Settings")[2]
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MEASURED = re.compile(r"\[−?[\d.]+, −?[\d.]+\]|[\d.]+ ± [\d.]+")
"""An interval, or a mean with its standard error."""
ADVICE = ["compare.md", "choosing.md", "faq.md"]
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


def console(document: Path) -> list[str]:
    """Return the statements of a document's console blocks."""
    blocks = BLOCK.findall(document.read_text(encoding="utf-8"))
    return [statement for language, code in blocks if language == "sh" for statement in statements(code)]


def understood(statement: str) -> bool:
    """Tell whether `bmtpt` takes a command line: there is the command, with these options."""
    _, *words = shlex.split(statement, comments=True)
    command = COMMANDS
    while group := getattr(command, "commands", None):
        command = group[words.pop(0)]
    return command.make_context(command.name, words) is not None


def test_the_blocks_of_the_documents_are_run_but_for_these():
    left_out = {page: [each for each in console(ROOT / page) if is_left_out(page, each)] for page in LEFT_OUT}
    unused = {(page, start) for page in LEFT_OUT for start in LEFT_OUT[page]}
    unused -= {(page, start) for page, start in unused if any(each.startswith(start) for each in left_out[page])}
    assert unused == set()
    # A new statement that is not run changes a number here on purpose, or gets a reader's test.
    assert {page: len(found) for page, found in left_out.items()} == {
        "README.md": 2, "docs/compare.md": 2, "docs/index.md": 2, "docs/neighbours.md": 8, "docs/performance.md": 3,
        "docs/reliability.md": 5, "docs/scaling.md": 7, "docs/serve-container.md": 8, "docs/serve-your-tasks.md": 1,
        "docs/serve.md": 1, "docs/studies.md": 10, "docs/usage.md": 6,
    }  # fmt: skip


def test_a_command_that_no_test_runs_is_understood():
    results = [each for page in (ROOT / "docs" / "results").glob("*.md") for each in console(page)]
    left_out = [each for page in LEFT_OUT for each in console(ROOT / page) if is_left_out(page, each)]
    ours = [each for each in results + left_out if each.startswith("bmtpt ")]
    assert len(ours) > 50
    assert [each for each in ours if not understood(each)] == []


def test_the_study_that_a_reader_is_given_is_one(tmp_path):
    (code,) = [
        code for language, code in BLOCK.findall((ROOT / "docs" / "compare.md").read_text()) if language == "yaml"
    ]
    (tmp_path / "compare.yaml").write_text(code)
    shutil.copytree(ROOT / "examples" / "tickets", tmp_path, dirs_exist_ok=True)
    study = load_study(tmp_path / "compare.yaml")
    assert [contender.label for contender in study.contenders() if contender.reread] == ["pt", "bmtpt"]


@pytest.mark.parametrize("page", ADVICE)
def test_the_figures_of_a_page_that_advises_stand_in_the_results(page):
    results = "".join(each.read_text(encoding="utf-8") for each in (ROOT / "docs" / "results").glob("*.md"))
    told = MEASURED.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert told
    assert [figure for figure in told if figure not in results] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_in_a_language_whose_blocks_are_run_or_are_no_code(document):
    text = document.read_text(encoding="utf-8")
    assert {language for language, _ in BLOCK.findall(text)} <= {"python", "sh", "yaml", "json", "text"}
    assert text.count("\n```") == 2 * len(BLOCK.findall(text))


def test_a_stale_name_and_a_dead_link_would_be_found(tmp_path):
    with pytest.raises(AttributeError):
        resolve("posterior/svgd.py", "no_such_function")
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[good](#a-heading) [bad](#other) [gone](gone.md) [outside](../) [web](https://x.y)")
    assert broken_links(page, tmp_path) == ["#other", "gone.md", "../"]
    assert len(STATED_DEFAULT.findall(SETTINGS)) > 10
    assert len(names_in(METHOD.read_text(encoding="utf-8"))) > 30
    assert len(CONTRIBUTOR_PATHS) > 10

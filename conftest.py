"""Every Python, console and task-file block of README.md and docs/*.md is a test, run as it stands; see `reader`.

The blocks of a page run in their order, in one folder. The pages of docs/results hold the commands of studies:
`tests/benchmarks/test_results_page.py` runs those that print their tables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # they are scripts, not a package

import reader
from reader import ROOT


def run_console(example: Example) -> None:
    reader.run_console(str(Path(example.path).relative_to(ROOT)), example.parsed)


def write_shown_file(example: Example) -> None:
    reader.write_shown_file(example.parsed)


pytest_collect_file = Sybil(
    [PythonCodeBlockParser(), CodeBlockParser("sh", run_console), CodeBlockParser("yaml", write_shown_file)],
    path=str(ROOT),
    patterns=["README.md", "docs/*.md"],
    excludes=["docs/results/*.md"],
    fixtures=["reading"],
).pytest()


@pytest.fixture(scope="module")
def reading(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The place of a page's reader, for all of its blocks."""
    page = str(request.path.relative_to(ROOT))
    folder = tmp_path_factory.mktemp("reader")
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        reader.fill(folder)
        patch.chdir(folder)
        stand_ins = reader.stand_ins(patch, folder)
        next(stand_ins)
        if page in reader.PUBLISHED:
            reader.publish(patch)
        if page in reader.HAVING_PROMPTS:
            reader.make_prompts()
        yield
        next(stand_ins, None)
    os.environ.clear()
    os.environ.update(before)

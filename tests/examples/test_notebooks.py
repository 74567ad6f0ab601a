"""Every notebook runs, in CI on the tiny stand-in for `offline`; the outputs that are stored are those of a real run.

`python benchmarks/notebooks.py` makes that run. `reader` says what stands in for what.
"""

from __future__ import annotations

import nbformat
import pytest

from notebooks import FOLDER, NOTEBOOKS, executed

STAND_INS = f"""
import sys
sys.path.insert(0, {str(FOLDER.parents[1] / "benchmarks")!r})
import tempfile, pathlib, pytest, reader
reading = reader.stand_ins(pytest.MonkeyPatch(), pathlib.Path(tempfile.mkdtemp()))
next(reading)
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_something_after_every_cell_that_did(path):
    found, stored = executed(path, STAND_INS), nbformat.read(path, as_version=4)
    assert [bool(cell.get("outputs")) for cell in found.cells] == [bool(cell.get("outputs")) for cell in stored.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_and_of_a_whole_run_on_the_real_model(path):
    stored = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in stored.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in stored.cells for output in cell.get("outputs", ())]
    assert {output.output_type for output in outputs} <= {"execute_result", "display_data", "stream"}
    assert path.stat().st_size < 100_000
    assert str(FOLDER.parents[1]) not in path.read_text(encoding="utf-8")


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["from-a-csv", "particles-of-a-posterior", "with-scikit-learn"]

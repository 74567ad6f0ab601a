"""docs/reliability.md holds the tables of the committed lines, and what they must show."""

from __future__ import annotations

import re

import pytest

from common import lines_in
from reliability_page import BLOCK, PAGE, RESULTS, TABLES, filled


def test_the_page_holds_the_tables_of_the_committed_lines():
    page = PAGE.read_text(encoding="utf-8")
    assert [block[1] for block in BLOCK.finditer(page)] == list(TABLES)
    assert filled(page) == page


@pytest.mark.parametrize("name", TABLES)
def test_every_harness_has_lines_and_none_of_them_holds_a_fault(name):
    lines = lines_in(RESULTS / f"{name}.jsonl")
    assert lines
    for line in lines:
        trials = line.get("trials", [line])
        assert [trial.get("faults", []) for trial in trials] == [[]] * len(trials)
        assert line.get("wrong", 0) == line.get("untyped", 0) == 0


def test_enough_was_tried():
    faults = lines_in(RESULTS / "faults.jsonl")
    assert sum(len(line["kills"]) for line in faults) >= 200
    assert len({line["setting"] for line in faults}) >= 20
    assert sum(line["inputs"] for line in lines_in(RESULTS / "fuzz.jsonl")) >= 100_000
    assert sum(line["cases"] for line in lines_in(RESULTS / "corruption.jsonl")) >= 2_000


def test_nothing_grows_faster_than_what_a_command_is_given():
    table = TABLES["sizes"](lines_in(RESULTS / "sizes.jsonl"))
    exponents = [float(row[-1]) for row in table.rows if re.match(r"[\d.]", row[-1])]
    assert exponents
    assert max(exponents) < 1.15

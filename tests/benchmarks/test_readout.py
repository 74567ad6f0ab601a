"""The measurement of readouts on an untrained prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import readout
from bmtpt.posterior.readout import Widths

ROOT = Path(__file__).parents[2]


def test_the_method_page_holds_the_table_of_the_committed_lines():
    lines = [json.loads(line) for line in (ROOT / "benchmarks/results/readout.jsonl").read_text().splitlines()]
    assert readout.table(lines) in (ROOT / "docs/method.md").read_text(encoding="utf-8")


def test_every_form_is_scored_on_the_rows_that_no_label_was_drawn_from(tiny_backbone, tiny_tasks):
    data = tiny_tasks["pairs"]
    lines = list(readout.measure(tiny_backbone, data, shots=(4, 8), draws=2))
    forms = {line["form"] for line in lines}
    assert len(lines) == 2 * 2 * len(forms)
    assert {line["rows"] for line in lines} == {len(data.test)}
    alone = {line["accuracy"] for line in lines if line["form"] == "words alone"}
    assert len(alone) == 1  # which labels were drawn does not matter to it
    assert tuple(Widths()) == pytest.approx((1.0, 1.0, 0.0))  # as the page says

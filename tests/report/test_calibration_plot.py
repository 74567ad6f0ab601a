"""The calibration curve of a study."""

from __future__ import annotations

import numpy as np
import pytest

from bmtpt.report.calibration_plot import calibration_plot
from bmtpt.report.lines import frame
from bmtpt.report.svg import style
from bmtpt.results import append_results, read_results

CURVE = ((9, 10, 0.65, 0.5), (14, 30, 0.98, 0.9))
OTHER = ((14, 10, 0.94, 1.0),)


def drawn(rows):
    with style():
        return calibration_plot(frame(rows))


def ece(result, target="cb", seed=0, curve=CURVE, **changes):
    return result("pt", target, seed, 5.0, metric="ece", primary=False, reliability=curve, **changes)


def test_seeds_count_by_their_rows(result):
    chart = drawn([ece(result), ece(result, seed=1, curve=OTHER)])
    low, high = chart.table.rows
    assert low == ("cb (32 shots)", "plain prompt tuning", "60 to 67", "10", "65.0", "50.0")
    assert high[3] == "40"
    assert [float(text) for text in high[4:]] == pytest.approx(
        [np.average([98, 94], weights=[30, 10]), np.average([90, 100], weights=[30, 10])], abs=0.051
    )


def test_many_targets_are_counted_together_by_shots(result):
    rows = [ece(result, f"t{n}", shots=shots) for n in range(4) for shots in (4, 16)]
    assert [row[0] for row in drawn(rows).table.rows] == ["all targets, 4 shots"] * 2 + ["all targets, 16 shots"] * 2
    assert drawn(rows).table.rows[0][3] == "40"


def test_lines_without_a_curve_have_no_figure(result):
    assert drawn([ece(result, curve=None), result("pt", "cb", 0, 50.0)]) is None


def test_a_curve_is_read_back_from_its_line_and_only_there(result, tmp_path):
    rows = [ece(result), ece(result, seed=1, curve=None)]
    append_results(tmp_path / "lines.jsonl", rows)
    assert read_results([tmp_path / "lines.jsonl"]) == rows
    assert (tmp_path / "lines.jsonl").read_text().count("reliability") == 1

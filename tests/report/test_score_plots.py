"""What the figures of a study draw."""

from __future__ import annotations

import numpy as np
import pytest

from bmtpt.report.lines import by_measure, frame
from bmtpt.report.score_plots import SHOTS, score_plot, varied_number, with_x
from bmtpt.report.statistics import scores
from bmtpt.report.svg import style


def lines_of(results):
    (lines,) = by_measure(frame(results))
    return lines


def drawn(results):
    with style():
        return score_plot(lines_of(results)).svg


def test_scores_are_drawn_over_the_number_that_varies(varied):
    cells = scores(lines_of(varied))
    assert varied_number(cells) == "particles"
    points = with_x(cells[cells.target == "cb"], "particles")
    curve = points[points.curve == "BMTPT"]
    expected = [
        np.mean([r.value for r in varied if (r.variant, r.target) == (f"particles={M}", "cb")]) for M in (1, 5, 15)
    ]
    assert list(curve.x) == [1, 5, 15]
    assert list(curve["mean"]) == pytest.approx(expected)
    assert "number of particles" in drawn(varied)


def test_other_options_make_curves_of_their_own(result):
    rows = [
        result("bmtpt", "cb", 0, 1.0, variant=f"prior={prior},prior_std={std:g}")
        for prior in ("mean", "mixture")
        for std in (0.5, 10.0)
    ]
    cells = scores(lines_of(rows))
    assert varied_number(cells) == "prior_std"
    assert set(with_x(cells, "prior_std").curve) == {"BMTPT (one Gaussian)", "BMTPT (one Gaussian per particle)"}


def test_the_settings_of_the_study_are_a_line_across_the_curve_of_its_variants(result):
    rows = [result("bmtpt", "cb", 0, value, variant=f"repulsion={value}") for value in (0.1, 10.0, 100.0)]
    svg = drawn([*rows, result("bmtpt", "cb", 0, 2.0)])
    assert "BMTPT, as set" in svg
    assert svg.count(">BMTPT<") == 1


def test_several_sizes_of_every_target_are_drawn_over_the_shots(result):
    rows = [result("pt", target, 0, 50.0, shots=shots) for target in ("cb", "rte") for shots in (4, 16)]
    assert varied_number(scores(lines_of(rows))) == SHOTS
    svg = drawn(rows)
    assert {">cb<", ">rte<", ">constant answer<"} <= {
        f">{text}<" for text in ("cb", "rte", "constant answer") if text in svg
    }


def test_variants_without_a_number_are_a_line_each(result):
    rows = [result("bmtpt", "cb", 0, 1.0, variant=f"kernel={kernel}") for kernel in ("rbf", "imq")]
    rows.append(result("pt", "cb", 0, 2.0))
    assert varied_number(scores(lines_of(rows))) is None
    assert "BMTPT (imq kernel)" in drawn(rows)

"""Differences averaged over targets, in tables and in the figure, against scipy."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats

from bmtpt.errors import ArtifactError
from bmtpt.report.gain_plot import gain_plot
from bmtpt.report.gains import BETTER, WORSE, floor_table, gain_table, gains
from bmtpt.report.html import render
from bmtpt.report.lines import frame, of_metric
from bmtpt.report.svg import as_file, style

TARGETS = ("cb", "rte", "paws")
LEVELS = {("bmtpt", "particles=5"): 70.0, ("spot", ""): 69.5, ("pt", ""): 60.0, ("mpt", ""): 80.0}


@pytest.fixture
def stages(result):
    """Two draws on each of five source stages, on three targets, with 4 and 16 labels; `pt` has no source stage."""
    rng = np.random.default_rng(0)
    fields = {"constant_answer": None}
    return [
        result(
            method, target, 10 * draw + stage, (level + rng.normal(0, 1)) * scale,
            variant=variant, shots=shots, metric=metric, source_seed=None if method == "pt" else stage, **fields,
        )
        for (method, variant), level in LEVELS.items()
        for target in TARGETS
        for shots in (4, 16)
        for stage in range(5)
        for draw in (0, 1)
        for metric, scale in (("accuracy", 1.0), ("nll", 0.01))
    ]  # fmt: skip


def differences(rows, other, shots, metric):
    """Return method − other [target, draw, stage]."""

    def values(method):
        found = {(r.target, r.seed): r.value for r in rows if (r.method, r.shots, r.metric) == (method, shots, metric)}
        return np.array([[[found[t, 10 * d + s] for s in range(5)] for d in (0, 1)] for t in TARGETS])

    return values("bmtpt") - values(other)


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_gains_are_scipys_intervals_over_source_stages_and_over_targets(stages, metric):
    found = gains(of_metric(frame(stages), metric), "bmtpt[particles=5]")
    assert list(zip(found.other, found.shots, strict=True)) == [(o, k) for k in (4, 16) for o in ("pt", "spot", "mpt")]
    for other, shots, over_stages, over_tasks in found.itertuples(index=False):
        expected = differences(stages, other, shots, metric)
        for each, values in ((over_stages, expected.mean(axis=(0, 1))), (over_tasks, expected.mean(axis=(1, 2)))):
            low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            assert (each.mean, each.low, each.high) == pytest.approx((expected.mean(), low, high))


def test_the_table_marks_clear_differences_and_counts_them(stages):
    table = gain_table(of_metric(frame(stages), "accuracy"), "bmtpt[particles=5]")
    assert table.header == ("BMTPT (M = 5) minus", "4 shots", "4 shots, new tasks", "16 shots", "16 shots, new tasks")
    rows = {row[0]: row[1:] for row in table.rows}
    assert all(cell.endswith(BETTER) for cell in rows["plain prompt tuning"])
    assert all(cell.endswith(WORSE) for cell in rows["MPT"])
    assert re.fullmatch(r"\d\.\d \[.+\]", rows["SPoT"][0].replace("−", "").removesuffix(f" {BETTER}"))
    found = gains(of_metric(frame(stages), "accuracy"), "bmtpt[particles=5]")
    clear = [each.low > 0 for each in found[found.shots == 4].stages]
    assert rows["clearly better, clearly worse"][0] == f"{sum(clear)}, 1 of 3"


def test_a_lower_loss_is_the_better_one(stages):
    rows = {row[0]: row[1:] for row in gain_table(of_metric(frame(stages), "nll"), "bmtpt[particles=5]").rows}
    assert all(cell.endswith(WORSE) for cell in rows["plain prompt tuning"])
    assert all(cell.endswith(BETTER) for cell in rows["MPT"])


def test_a_method_that_lacks_a_target_is_not_compared_over_targets(stages):
    fewer = [row for row in stages if (row.method, row.target) != ("spot", "rte")]
    assert set(gains(of_metric(frame(fewer), "accuracy"), "bmtpt[particles=5]").other) == {"pt", "mpt"}


def test_a_target_is_under_the_floor_from_one_standard_error_on(stages):
    table = floor_table(of_metric(frame(stages), "accuracy"), "bmtpt[particles=5]", ["spot", "mpt"])
    rows = {row[0]: row[1:] for row in table.rows}
    under = 0
    for place, target in enumerate(TARGETS):
        for shots in (4, 16):
            by_stage = differences(stages, "spot", shots, "accuracy")[place].mean(axis=0)
            bad = by_stage.mean() < -stats.sem(by_stage)
            text = f"{by_stage.mean():.1f} ± {stats.sem(by_stage):.1f}{f' {WORSE}' * bool(bad)}".replace("-", "−")
            assert rows[f"{target} ({shots} shots)"][0] == text.replace("−0.0", "0.0")
            under += bool(bad)
    assert rows["under on"] == (f"{under} of 6", "6 of 6")


def test_the_figure_has_a_row_per_other_method_and_a_colour_per_number_of_labels(stages):
    lines = frame(stages)
    with style():
        svg = as_file(gain_plot([of_metric(lines, "accuracy"), of_metric(lines, "nll")], "bmtpt[particles=5]"))
    for text in ("plain prompt tuning", "SPoT", "MPT", "4 labels", "16 labels", "accuracy: right of 0 is better"):
        assert svg.count(f">{text}</text>") == 1
    assert "nll: left of 0 is better" in svg
    assert "BMTPT" not in svg.partition("</text>")[2]


def test_the_figure_is_drawn_where_the_numbers_are(stages):
    lines = of_metric(frame(stages), "accuracy")
    with style():
        svg = gain_plot([lines], "bmtpt[particles=5]")
    drawn = re.findall(
        r'<path d="M ([\d.]+) ([\d.]+) L ([\d.]+) \2 " clip-path="[^"]*" style="[^"]*stroke-width: 2', svg
    )
    found = gains(lines, "bmtpt[particles=5]").stages
    ends = np.array([[float(left), float(right)] for left, _, right in drawn])
    expected = np.array([[each.low, each.high] for each in found])
    scale = np.ptp(ends) / np.ptp(expected)
    assert ends.shape == expected.shape == (6, 2)
    np.testing.assert_allclose((ends - ends.min()) / scale, expected - expected.min(), atol=0.05)


def test_a_cost_has_no_better_side(stages):
    seconds = of_metric(frame(stages), "seconds")
    table = gain_table(seconds, "bmtpt[particles=5]")
    assert [row[1] for row in table.rows] == ["0 [0, 0]"] * 3
    assert BETTER not in table.notes[0]
    with pytest.raises(ArtifactError, match="'seconds' does not rank methods"):
        floor_table(seconds, "bmtpt[particles=5]", ["pt"])


def test_a_method_that_is_alone_on_a_target_is_compared_with_none(stages):
    lines = of_metric(frame([row for row in stages if (row.method == "bmtpt") or row.target != "cb"]), "accuracy")
    with pytest.raises(ArtifactError, match="no other method has results on every target"):
        gain_table(lines, "bmtpt[particles=5]")
    assert gain_plot([lines], "bmtpt[particles=5]") is None


def test_the_report_draws_the_figure_of_the_method_that_is_named(stages):
    assert "minus each other method" not in render([], stages)
    assert "BMTPT (M = 5) minus each other method" in render([], stages, "bmtpt[particles=5]")


def test_a_method_without_results_is_an_error(stages):
    with pytest.raises(ArtifactError, match=r"no results of the method 'bmtpt'; choose from .*bmtpt\[particles=5\]"):
        gains(of_metric(frame(stages), "accuracy"), "bmtpt")

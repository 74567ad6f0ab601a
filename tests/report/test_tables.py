"""Tables against numpy and scipy."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from bmtpt.errors import ArtifactError
from bmtpt.report.tables import (
    difference_table,
    paired_difference,
    score_table,
    summarise,
    to_markdown,
    to_rich,
    verdict,
)


def values(results, method, target):
    return np.array([r.value for r in results if (r.method, r.target) == (method, target)])


def text_of(table):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text(styles=True)


def test_means_and_standard_errors_are_numpys(study):
    cells = {(cell.method, cell.target): cell for cell in summarise(study)}
    assert len(cells) == 9
    for (method, target), cell in cells.items():
        expected = values(study, method, target)
        assert cell.mean == pytest.approx(expected.mean(), abs=1e-12)
        assert cell.standard_error == pytest.approx(expected.std(ddof=1) / 2, abs=1e-12)


def test_one_seed_has_no_standard_error(result):
    (cell,) = summarise([result("pt", "cb", 0, 61.0)])
    assert cell.standard_error is None
    assert score_table([result("pt", "cb", 0, 61.0)]).rows[0][-1].text == "61.0"


def test_of_a_repeated_line_the_last_counts(result):
    (cell,) = summarise([result("pt", "cb", 0, 10.0), result("pt", "cb", 1, 30.0), result("pt", "cb", 0, 20.0)])
    assert (cell.seeds, cell.values) == ((0, 1), (20.0, 30.0))


def test_secondary_metrics_are_left_out(result):
    rows = [result("pt", "cb", 0, 10.0), result("pt", "cb", 0, 99.0, metric="f1", primary=False)]
    assert [cell.mean for cell in summarise(rows)] == [10.0]


@pytest.mark.parametrize("change", [{"backbone": "other"}, {"metric": "f1"}])
def test_a_cell_that_mixes_backbones_or_metrics_is_refused(result, change):
    with pytest.raises(ArtifactError, match=next(iter(change))):
        summarise([result("pt", "cb", 0, 10.0), result("pt", "cb", 1, 20.0, **change)])


def test_one_seed_under_two_settings_is_refused(result):
    with pytest.raises(ArtifactError, match="seed 0 under several"):
        summarise([result("pt", "cb", 0, 10.0), result("pt", "cb", 0, 20.0, settings_hash="other")])


def test_the_least_official_data_status_is_shown(result):
    rows = [result("pt", "cb", 0, 1.0, data="official"), result("pt", "cb", 1, 1.0, data="rebuilt")]
    assert summarise(rows)[0].data == "rebuilt"


def test_paired_intervals_are_those_of_scipys_paired_t_test(study):
    difference = paired_difference(study, "bmtpt", "pt")
    for (target, _), interval in difference.rows.items():
        reference = stats.ttest_rel(values(study, "bmtpt", target), values(study, "pt", target))
        expected = reference.confidence_interval(0.95)
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-10)
    by_seed = [np.mean([values(study, m, t) for t in ("cb", "rte", "paws")], axis=0) for m in ("bmtpt", "pt")]
    expected = stats.ttest_rel(*by_seed).confidence_interval(0.95)
    assert difference.overall.mean == pytest.approx(np.mean(by_seed[0] - by_seed[1]), abs=1e-10)
    assert (difference.overall.low, difference.overall.high) == pytest.approx((expected.low, expected.high))


def test_pairing_is_by_seed_and_not_by_order_of_lines(study):
    forward, backward = (paired_difference(rows, "bmtpt", "pt") for rows in (study, study[::-1]))
    assert forward.rows == backward.rows
    assert forward.overall.mean == pytest.approx(backward.overall.mean, abs=1e-12)


def test_a_seed_that_only_one_method_has_is_not_paired(result):
    rows = [result("bmtpt", "cb", seed, 60.0 + seed) for seed in (0, 1, 2)]
    rows += [result("pt", "cb", seed, 50.0) for seed in (1, 2, 3)]
    (interval,) = paired_difference(rows, "bmtpt", "pt").rows.values()
    assert (interval.seeds, interval.differences) == ((1, 2), (11.0, 12.0))


def test_an_unknown_method_gets_a_hint(study):
    with pytest.raises(ArtifactError, match="did you mean 'bmtpt'"):
        paired_difference(study, "bmtp", "pt")


def test_the_best_of_each_row_is_bold_in_markdown_and_terminal(study):
    table = score_table(study)
    for target, row in zip(("cb", "rte", "paws"), table.rows, strict=False):
        means = {m: values(study, m, target).mean() for m in ("pt", "spot", "bmtpt")}
        best = max(means, key=means.get)
        assert [e.best for e in row[4:]] == [m == best for m in means]
        assert f"**{means[best]:.1f} ± " in to_markdown(table)
        assert re.search(rf"\x1b\[1m *{means[best]:.1f} ± ", text_of(to_rich(table)))
    assert to_markdown(table).count("**") == 2 * len(("cb", "rte", "paws", "mean over targets"))


def test_below_the_targets_stands_their_mean_with_its_error_over_seeds(study):
    last = score_table(study).rows[3]
    assert last[0].text == "mean over targets"
    by_seed = np.mean([values(study, "pt", t) for t in ("cb", "rte", "paws")], axis=0)
    assert last[4].text == f"{by_seed.mean():.1f} ± {by_seed.std(ddof=1) / 2:.1f}"


def test_the_last_rows_are_what_each_method_trains_and_its_mean_seconds(result):
    costs = {("pt", "cb"): (500, [1.0, 3.0]), ("pt", "rte"): (500, [2.0, 6.0])}
    costs |= {("bmtpt", "cb"): (1500, [10.0, 20.0]), ("bmtpt", "rte"): (700, [30.0, 40.0])}
    rows = [
        result(method, target, seed, 50.0, trained_parameters=trained, seconds=each)
        for (method, target), (trained, seconds) in costs.items()
        for seed, each in enumerate(seconds)
    ]
    table = score_table(rows)
    assert [entry.text for entry in table.rows[-2][3:]] == ["–", "500", "700 to 1,500"]
    assert [entry.text for entry in table.rows[-1][3:]] == ["–", "3", "25"]
    assert not any(entry.best for row in table.rows[-2:] for entry in row)
    assert "without the source stages" in table.notes[-1]


def test_there_is_no_mean_over_targets_if_a_method_lacks_one(study):
    table = score_table([row for row in study if (row.method, row.target) != ("pt", "rte")])
    assert {row[0].text: row[4].text == "–" for row in table.rows[:-2]} == {"cb": False, "rte": True, "paws": False}


def test_names_with_markup_are_shown_as_they_are(result):
    table = score_table([result("a|b", "[red]x", 0, 1.0), result("c", "[red]x", 0, 2.0)])
    assert "[red]x" in text_of(to_rich(table))
    assert {line.replace("\\|", "").count("|") for line in to_markdown(table).splitlines() if "|" in line} == {7}


def test_a_target_on_which_nothing_beats_the_constant_answer_is_named(result):
    rows = [result("pt", "rte", 0, 54.0, constant_answer=54.0), result("pt", "cb", 0, 80.0)]
    notes = " ".join(score_table(rows).notes)
    assert "constant answer on rte (32 shots)" in notes
    assert "constant answer on cb" not in notes


def test_the_verdict_says_that_bmtpt_does_not_win(result):
    rows = [result("bmtpt", t, s, v + s) for t, v in (("a", 80.0), ("b", 60.0)) for s in range(3)]
    rows += [result("pt", t, s, v) for t, v in (("a", 71.0), ("b", 75.0)) for s in range(3)]
    rows += [result("spot", t, s, 50.0) for t in "ab" for s in range(3)]
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert verdict(rows) == (
        "BMTPT is best on 1 of 2 targets; its mean over targets is 71.0 against 73.0 for plain prompt tuning, "
        "the strongest of the others (paired difference −2.0, 95 % interval "
        f"−{2 + half:.1f} to {half - 2:.1f}, 3 seeds): it does not win."
    )


@pytest.mark.parametrize(
    ("differences", "ending"),
    [
        ((5.0, 5.1, 4.9), "it wins."),
        ((9.0, -5.0, 1.0), "the interval includes 0, so this is no clear win."),
        ((-5.0, -5.1, -4.9), "it does not win, it is clearly behind."),
        ((0.0, 0.0, 0.0), "it does not win."),
        ((3.0,), "without an interval is no proof of a win."),
    ],
)
def test_the_verdict_claims_a_win_only_with_an_interval_above_zero(result, differences, ending):
    rows = [result("pt", "cb", seed, 50.0) for seed in range(len(differences))]
    rows += [result("bmtpt", "cb", seed, 50.0 + d) for seed, d in enumerate(differences)]
    assert verdict(rows).endswith(ending)


def test_a_tie_is_not_counted_as_best(result):
    rows = [result(m, "cb", 0, 50.0) for m in ("pt", "bmtpt")]
    assert verdict(rows).startswith("BMTPT is best on 0 of 1 target")


def test_without_a_rival_the_verdict_claims_nothing(result):
    assert "nothing can be said" in verdict([result("bmtpt", "cb", 0, 50.0)])
    assert "not among" in verdict([result("pt", "cb", 0, 50.0)])
    apart = [result("bmtpt", "cb", 0, 50.0), result("pt", "rte", 0, 50.0)]
    assert "no target in common" in verdict(apart)


def test_tables_import_nothing_heavy():
    code = "import sys, bmtpt.report.tables; print(*(m for m in ('torch', 'scipy', 'matplotlib') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_difference_table_shows_the_paired_t_interval_of_every_row_and_of_all(result):
    mine, theirs = [70.0, 74.0, 71.0], [68.0, 73.0, 66.0]
    by_method = {"bmtpt": mine, "pt": theirs}
    results = [
        result(name, "cb", seed, value) for name, scores in by_method.items() for seed, value in enumerate(scores)
    ]
    interval = stats.ttest_rel(mine, theirs).confidence_interval(0.95)
    expected = f"{np.mean(mine) - np.mean(theirs):.1f} [{interval.low:.1f}, {interval.high:.1f}]".replace("-", "−")
    assert [row[-1].text for row in difference_table(results).rows] == [expected, expected]

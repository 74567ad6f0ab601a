"""Means, intervals and verdicts against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bmtpt.errors import ArtifactError
from bmtpt.report.lines import by_measure, frame
from bmtpt.report.statistics import (
    interval,
    judged_of,
    over_targets,
    paired,
    pairs_to_compare,
    scores,
    together,
    verdict,
)


def lines_of(results):
    (lines,) = by_measure(frame(results))
    return lines


def in_source_stages(lines, stage_of):
    """Name each line's source stage, as lines of newer studies do."""
    stage = lines.seed.map(stage_of).where(lines.method != "pt").astype(float)
    return lines.assign(source_seed=stage, unit=stage.fillna(lines.seed))


def values(results, method, target):
    return np.array([r.value for r in results if (r.method, r.target) == (method, target)])


def test_means_and_standard_errors_are_numpys(study):
    cells = scores(lines_of(study))
    assert len(cells) == 9
    for cell in cells.itertuples():
        expected = values(study, cell.contender, cell.target)
        assert cell.mean == pytest.approx(expected.mean(), abs=1e-12)
        assert cell.error == pytest.approx(expected.std(ddof=1) / 2, abs=1e-12)


def test_one_seed_has_no_standard_error(result):
    (cell,) = scores(lines_of([result("pt", "cb", 0, 61.0)])).itertuples()
    assert np.isnan(cell.error)


def test_the_least_official_data_status_is_shown(result):
    rows = [result("pt", "cb", 0, 1.0, data="official"), result("pt", "cb", 1, 1.0, data="rebuilt")]
    assert list(scores(lines_of(rows)).data) == ["rebuilt"]


def test_runs_on_one_source_stage_are_averaged_before_the_standard_error(study):
    cells = scores(in_source_stages(lines_of(study), lambda seed: seed % 2))
    for cell in cells.itertuples():
        own = values(study, cell.contender, cell.target)
        stages = own if cell.contender == "pt" else np.array([own[::2].mean(), own[1::2].mean()])
        assert (cell.units, cell.runs) == (len(stages), 4)
        assert cell.mean == pytest.approx(stages.mean(), abs=1e-12)
        assert cell.error == pytest.approx(stats.sem(stages), abs=1e-12)


def test_paired_differences_take_t_over_source_stages_where_the_lines_name_them(study):
    lines = in_source_stages(lines_of(study), lambda seed: seed % 2)
    difference = values(study, "bmtpt", "cb") - values(study, "pt", "cb")
    stages = np.array([difference[::2].mean(), difference[1::2].mean()])
    expected = stats.ttest_1samp(stages, 0).confidence_interval(0.95)
    found = interval(paired(lines, "bmtpt", "pt")["cb (32 shots)"])
    assert found == pytest.approx((stages.mean(), expected.low, expected.high, 2), abs=1e-10)


def test_two_methods_with_source_stages_are_paired_within_a_stage(result):
    rows = [result(m, "cb", seed, v) for m, v in (("bmtpt", 60.0), ("spot", 50.0)) for seed in (0, 0, 1, 1)]
    lines = frame(rows)
    lines["value"] = [60.0, 61.0, 62.0, 63.0, 50.0, 50.0, 50.0, 50.0]
    lines["source_seed"] = lines["unit"] = [0.0, 1.0] * 4
    assert list(paired(lines, "bmtpt", "spot")["cb (32 shots)"]) == [11.0, 12.0]


def test_paired_intervals_are_those_of_scipys_paired_t_test(study):
    found = paired(lines_of(study), "bmtpt", "pt")
    for target in ("cb", "rte", "paws"):
        reference = stats.ttest_rel(values(study, "bmtpt", target), values(study, "pt", target))
        expected = reference.confidence_interval(0.95)
        _, low, high, n = interval(found[f"{target} (32 shots)"])
        assert (low, high, n) == pytest.approx((expected.low, expected.high, 4), abs=1e-10)
    by_seed = [np.mean([values(study, m, t) for t in ("cb", "rte", "paws")], axis=0) for m in ("bmtpt", "pt")]
    expected = stats.ttest_rel(*by_seed).confidence_interval(0.95)
    overall = together(found)
    assert overall.mean == pytest.approx(np.mean(by_seed[0] - by_seed[1]), abs=1e-10)
    assert (overall.low, overall.high) == pytest.approx((expected.low, expected.high))


def test_pairing_is_by_seed_and_not_by_order_of_lines(study):
    forward, backward = (paired(lines_of(rows), "bmtpt", "pt") for rows in (study, study[::-1]))
    assert forward.equals(backward[forward.columns])


def test_a_seed_that_only_one_method_has_is_not_paired(result):
    rows = [result("bmtpt", "cb", seed, 60.0 + seed) for seed in (0, 1, 2)]
    rows += [result("pt", "cb", seed, 50.0) for seed in (1, 2, 3)]
    found = paired(lines_of(rows), "bmtpt", "pt")["cb (32 shots)"]
    assert dict(found) == {1: 11.0, 2: 12.0}


def test_methods_without_a_seed_in_common_have_no_interval(result):
    rows = [result("bmtpt", "cb", 0, 60.0), result("pt", "cb", 1, 50.0)]
    assert together(paired(lines_of(rows), "bmtpt", "pt")) is None
    assert "difference 10.0; no seed has every target for both" in verdict(lines_of(rows))


def test_an_unknown_method_gets_a_hint(study):
    with pytest.raises(ArtifactError, match="did you mean 'bmtpt'"):
        paired(lines_of(study), "bmtp", "pt")


def test_the_mean_over_targets_has_its_error_over_seeds_if_all_targets_have_the_same(study):
    by_seed = np.mean([values(study, "pt", t) for t in ("cb", "rte", "paws")], axis=0)
    found = over_targets(lines_of(study)).loc["pt"]
    assert tuple(found) == pytest.approx((by_seed.mean(), stats.sem(by_seed)), abs=1e-12)
    fewer = lines_of([row for row in study if (row.target, row.seed) != ("cb", 3)])
    assert np.isnan(over_targets(fewer).error["pt"])


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["pt", "bmtpt"], [("bmtpt", "pt")]),
        (["pt", "bmtpt", "bmtpt[a=1]"], [("bmtpt", "pt"), ("bmtpt", "bmtpt[a=1]")]),
        (["pt", "bmtpt[a=1]", "bmtpt[a=2]"], [("bmtpt[a=1]", "pt"), ("bmtpt[a=2]", "pt")]),
        (["bmtpt[a=1]", "bmtpt[a=2]", "bmtpt[a=3]"], [("bmtpt[a=2]", "bmtpt[a=1]"), ("bmtpt[a=3]", "bmtpt[a=1]")]),
        (
            ["bmtpt[n=2,a=1]", "bmtpt[n=2]", "bmtpt[n=9]", "bmtpt[n=9,a=1]"],
            [
                ("bmtpt[n=2,a=1]", "bmtpt[n=2]"),
                ("bmtpt[n=9]", "bmtpt[n=2]"),
                ("bmtpt[n=9,a=1]", "bmtpt[n=9]"),
            ],
        ),
        (
            ["bmtpt[a=1]", "bmtpt[b=2]", "bmtpt[a=1,b=2]"],
            [
                ("bmtpt[b=2]", "bmtpt[a=1]"),
                ("bmtpt[a=1,b=2]", "bmtpt[a=1]"),
            ],
        ),
        (["svgd[a=1]", "pt"], []),
        (
            ["pt[r=1]", "pt[r=2]", "bmtpt[r=1,s=3]", "bmtpt[r=2,s=3]"],
            [("bmtpt[r=1,s=3]", "pt[r=1]"), ("bmtpt[r=2,s=3]", "pt[r=2]")],
        ),
        (
            ["pt[r=1]", "pt[r=2]", "spot[r=3]", "spot[r=1]", "bmtpt[r=3]"],
            [("bmtpt[r=3]", "pt[r=1]"), ("bmtpt[r=3]", "pt[r=2]"), ("bmtpt[r=3]", "spot[r=3]")],
        ),
    ],
)
def test_variants_are_compared_with_the_other_methods_or_else_with_the_first_of_them(names, pairs):
    assert pairs_to_compare(names, "bmtpt") == pairs


def test_svgd_is_judged_where_there_are_no_prompts():
    assert judged_of(["best_single[dimension=2]", "svgd[dimension=2,kernel=rbf]"]) == "svgd"
    assert judged_of(["svgd", "bmtpt"]) == judged_of(["pt"]) == "bmtpt"


# The verdict


def test_the_verdict_says_that_bmtpt_does_not_win(result):
    rows = [result("bmtpt", t, s, v + s) for t, v in (("a", 80.0), ("b", 60.0)) for s in range(3)]
    rows += [result("pt", t, s, v) for t, v in (("a", 71.0), ("b", 75.0)) for s in range(3)]
    rows += [result("spot", t, s, 50.0) for t in "ab" for s in range(3)]
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert verdict(lines_of(rows)) == (
        "BMTPT is best on 1 of 2 targets; its mean score over targets is 71.0 against 73.0 for plain prompt tuning, "
        "the strongest of the others (paired difference −2.0, 95 % interval "
        f"−{2 + half:.1f} to {half - 2:.1f}, 3 seeds): it does not win."
    )


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize(
    ("gains", "ending"),
    [
        ((5.0, 5.1, 4.9), "it wins."),
        ((9.0, -5.0, 1.0), "the interval includes 0, so this is not a clear win."),
        ((-5.0, -5.1, -4.9), "it does not win and is clearly worse."),
        ((0.0, 0.0, 0.0), "it does not win."),
        ((3.0,), "without an interval is no proof of a win."),
    ],
)
def test_the_verdict_claims_a_win_only_with_an_interval_on_the_good_side_of_zero(result, metric, gains, ending):
    sign = -1 if metric == "nll" else 1
    rows = [result("pt", "cb", seed, 50.0, metric=metric) for seed in range(len(gains))]
    rows += [result("bmtpt", "cb", seed, 50.0 + sign * gain, metric=metric) for seed, gain in enumerate(gains)]
    assert verdict(lines_of(rows)).endswith(ending)


@pytest.mark.parametrize(
    ("stages", "ending"), [(4, "with fewer than 5 source stages this is no finding."), (5, "it wins.")]
)
def test_a_win_needs_five_source_stages(result, stages, ending):
    rows = [result("bmtpt", "cb", seed, 60.0 + seed, source_seed=seed) for seed in range(stages)]
    rows += [result("pt", "cb", seed, 50.0 + 1.1 * seed) for seed in range(stages)]
    assert verdict(lines_of(rows)).endswith(ending)


def test_the_strongest_rival_in_loss_is_the_lowest(result):
    rows = [result(m, "cb", 0, v, metric="nll") for m, v in (("bmtpt", 0.5), ("pt", 0.7), ("spot", 0.6))]
    assert "0.5 against 0.6 for SPoT" in verdict(lines_of(rows))
    assert "best on 1 of 1 target" in verdict(lines_of(rows))


def test_a_tie_is_not_counted_as_best(result):
    rows = [result(m, "cb", 0, 50.0) for m in ("pt", "bmtpt")]
    assert verdict(lines_of(rows)).startswith("BMTPT is best on 0 of 1 target")


def test_without_a_rival_the_verdict_claims_nothing(result):
    assert "nothing can be said" in verdict(lines_of([result("bmtpt", "cb", 0, 50.0)]))
    assert "not among" in verdict(lines_of([result("pt", "cb", 0, 50.0)]))
    apart = [result("bmtpt", "cb", 0, 50.0), result("pt", "rte", 0, 50.0)]
    assert "no target in common" in verdict(lines_of(apart))


def test_no_winner_is_declared_in_a_calibration_error(result):
    rows = [result(m, "cb", 0, v, metric="ece") for m, v in (("bmtpt", 5.0), ("pt", 7.0))]
    assert verdict(lines_of(rows)) == (
        "ece: expected calibration error in 15 bins, 0 to 100; not a proper score; it does not rank methods, so no "
        "winner is declared."
    )


def test_no_winner_is_declared_among_variants_and_a_single_variant_is_judged(varied, result):
    assert "3 variants" in verdict(lines_of(varied))
    assert "no winner is declared" in verdict(lines_of(varied))
    as_is = [result("bmtpt", "cb", seed, 99.0) for seed in range(4)]
    assert "4 variants" in verdict(lines_of([*varied, *as_is]))
    single = [row for row in varied if row.variant in ("", "particles=15")]
    assert verdict(lines_of(single)).startswith("BMTPT (M = 15) is best on 2 of 2 targets")

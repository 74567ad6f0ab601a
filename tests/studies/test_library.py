"""Every study that comes with bmtpt runs at its smallest scale, and its report is drawn."""

from __future__ import annotations

import pytest

from bmtpt.errors import ArtifactError
from bmtpt.report.html import write_report
from bmtpt.results import append_results, read_results
from bmtpt.settings import validated
from bmtpt.studies import named_studies, run_study
from bmtpt.studies.jobs import to_do
from bmtpt.studies.kinds import make_bench
from bmtpt.studies.lines import done_jobs
from bmtpt.studies.load import checked, find_study, study_values
from bmtpt.studies.run import RESULTS
from bmtpt.studies.spec import KINDS, StudySpec


@pytest.fixture
def smoke(tiny_t5_folder, tiny_task_folder):
    """Return a function that reads a study at scale smoke, on the tiny model and tasks."""

    def read(name):
        values = study_values(find_study(name), "smoke")
        kind = KINDS[values.get("kind", "grid")]
        if issubclass(kind, StudySpec):
            sources = [str(tiny_task_folder / f"{each}.yaml") for each in ("sentiment", "answers")]
            values |= {"backbone": str(tiny_t5_folder), "sources": sources, "tuning": []}
            values |= {"targets": [str(tiny_task_folder / "pairs.yaml")]}
        return checked(validated(kind, values), name)

    return read


@pytest.mark.parametrize("name", named_studies())
def test_a_study_runs_at_scale_smoke_and_every_job_has_its_lines(name, smoke, tmp_path):
    study = smoke(name)
    results = run_study(study, tmp_path)
    jobs = make_bench(study, tmp_path).jobs()
    assert to_do(jobs, done_jobs(jobs, results)) == []
    assert read_results(tmp_path / RESULTS) == results
    assert {row.study.removesuffix("-surface").removesuffix("-blur") for row in results} == {study.name}
    if name in ("particles", "collapse"):  # one study of prompts and one of densities
        page = write_report([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
        assert page.count("<svg") >= len({row.metric for row in results if row.primary})


def test_the_loss_around_a_prompt_is_that_of_the_prompt_plus_the_rise(smoke, tmp_path):
    results = run_study(smoke("smoothing"), tmp_path)
    surfaces = {(row.method, row.variant, row.metric): row.value for row in results if row.study.endswith("-surface")}
    points = {(method, variant) for method, variant, _ in surfaces}
    assert {variant for _, variant in points} == {
        *("radius=0.5", "radius=1", "radius=0.5,prior_std=3", "radius=1,prior_std=3"),
    }
    at_prompt = {
        (method, variant): surfaces[method, variant, "loss"] - surfaces[method, variant, "loss_rise"]
        for method, variant in points
    }
    for method in ("bmtpt", "bmtpt_no_prior"):
        same = [loss for (name, _), loss in at_prompt.items() if name == method]
        assert same[0] == pytest.approx(same[1], abs=1e-5)  # whatever the radius, it is measured from one prompt
    blurs = {row.method: row.value for row in results if row.study.endswith("-blur")}
    assert blurs["measured"] == pytest.approx(blurs["closed_form"], abs=1e-6)


def test_the_loss_is_not_measured_around_a_prompt_of_another_run(smoke, tmp_path):
    study = smoke("smoothing").model_copy(update={"methods": ("bmtpt_no_prior",), "variants": {}})
    results = run_study(study, tmp_path)
    other = study.adapt.model_copy(update={"learning_rate": 0.7})
    (tmp_path / RESULTS).unlink()
    run_study(study.model_copy(update={"adapt": other}), tmp_path)  # its prompt takes the place of the first one's
    (tmp_path / RESULTS).unlink()
    append_results(tmp_path / RESULTS, [row for row in results if not row.study.endswith("-surface")])
    with pytest.raises(ArtifactError, match="does not hold the prompt of these settings"):
        run_study(study, tmp_path)

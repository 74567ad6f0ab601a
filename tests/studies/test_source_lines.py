"""Every source stage says once what it cost."""

from __future__ import annotations

import json

import pytest

from bmtpt.artifacts.saved import Posterior
from bmtpt.report.lines import frame, of_metric
from bmtpt.report.statistics import scores
from bmtpt.studies import run_study
from bmtpt.train.events import end_of

METHODS = ["pt", "spot", "mpt", "multitask", "bmtpt"]
PROMPTS = {"sentiment": "source prompt sentiment", "answers": "source prompt answers"}


@pytest.fixture(scope="module")
def study(tiny_study):
    return tiny_study(methods=METHODS, variants={})


@pytest.fixture(scope="module")
def ran(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    return folder, run_study(study, folder)


def costs_of(results):
    return {row.method: row for row in results if row.target == "sources" and row.metric == "seconds"}


def test_a_prompt_of_one_source_has_one_line_with_the_cost_on_its_card(ran):
    folder, results = ran
    costs = costs_of(results)
    assert set(costs) == {*PROMPTS.values(), "mpt sources", "multitask sources"}
    for source, method in PROMPTS.items():
        posterior = Posterior.load(folder / "sources" / "seed0" / f"only-{source}")
        line = costs[method]
        assert line.sources == (source,)
        assert line.value == line.seconds == posterior.card.seconds > 0
        assert line.steps == posterior.card.steps == 2
        assert line.trained_parameters == posterior.particles.numel()
        assert (line.primary, line.shots) == (False, None)


def test_mpts_stage_says_what_it_took_without_its_teachers(ran, study):
    folder, results = ran
    (place,) = (folder / "sources" / "seed0").glob("mpt-*")
    (end,) = (json.loads(line) for line in (place / "events.jsonl").read_text().splitlines() if '"end"' in line)
    line = costs_of(results)["mpt sources"]
    P, D = Posterior.load(folder / "sources" / "seed0" / "m2").particles.shape[1:]
    assert line.trained_parameters == P * D + 2 * (P + D)
    assert line.seconds == end["seconds"] > 0
    assert line.steps == study.learn.steps
    assert set(line.sources) == set(PROMPTS)


def test_the_multi_task_prompt_has_a_line_and_the_posterior_keeps_its_own(ran):
    _, results = ran
    assert costs_of(results)["multitask sources"].trained_parameters > 0
    posterior = [row for row in results if row.method == "posterior"]
    assert {"spread", "mean_nll"} <= {row.metric for row in posterior}
    assert "seconds" not in {row.metric for row in posterior}
    cells = scores(of_metric(frame(results), "seconds"))
    summed = {cell.contender: cell.mean for cell in cells.itertuples() if cell.target == "sources"}
    assert summed == {row.method: row.seconds for row in results if row.target == "sources"}


def test_what_the_particles_start_around_counts_with_their_posterior(tiny_study, tmp_path):
    learn = tiny_study().learn.model_copy(update={"particle_init": "prompt", "init_steps": 1})
    results = run_study(tiny_study(methods=["bmtpt"], variants={}).model_copy(update={"learn": learn}), tmp_path)
    assert {row.method for row in results} == {"posterior", "bmtpt"}
    (start,) = (tmp_path / "sources").glob("start-*")
    line = next(row for row in results if row.method == "posterior")
    assert line.seconds > Posterior.load(start).card.seconds


def test_variants_of_mpts_own_settings_are_told_apart(tiny_study, tmp_path):
    study = tiny_study(methods=["mpt"], variants={"mpt": [{"options.mpt.distillation_weight": [0.0, 0.9]}]})
    results = run_study(study, tmp_path)
    stages = [row.variant for row in results if row.method == "mpt sources"]
    assert stages == ["distillation_weight=0", "distillation_weight=0.9"]
    assert run_study(study, tmp_path) == results


def test_the_end_of_a_log_is_its_last_and_a_run_that_was_killed_has_none(tmp_path):
    log = tmp_path / "events.jsonl"
    assert end_of(log) is None
    end = {"event": "end", "step": 2, "seconds": 1.5}
    log.write_text('{"event": "step", "step": 1}\n' + json.dumps(end)[:-5])
    assert end_of(log) is None
    log.write_text(json.dumps(end | {"step": 1}) + "\n" + json.dumps(end) + "\n")
    assert end_of(log) == end

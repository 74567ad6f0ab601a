"""Targets trained in one run: what they share, whose lines the run writes, and that it depends on all of them."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from bmtpt.artifacts.saved import Posterior, Prompt, PromptMixture
from bmtpt.backbone import Backbone
from bmtpt.errors import SettingsError
from bmtpt.inference.score import metric_names
from bmtpt.methods.registry import Learned, get_method
from bmtpt.results import append_results, read_results
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.target import adapt_together, fit_method
from bmtpt.studies import run_study
from bmtpt.studies.grid import Grid
from bmtpt.studies.load import checked
from bmtpt.studies.run import RESULTS, prompt_folder
from bmtpt.tasks import load_data, load_task

P, D, WIDTH = 3, 24, 5
METHODS = ("attempt", "mpt", "bmtpt", "bmtpt_no_prior")
NAMES = ("pairs", "answers")
TOGETHER = "together=true"


@pytest.fixture(scope="module")
def make(tiny_study, tiny_task_folder):
    """Return a function that makes a study of two targets, one by one and together."""

    def study(*targets, **changes):
        values = {
            "sources": [str(tiny_task_folder / "sentiment.yaml")],
            "targets": [str(tiny_task_folder / f"{name}.yaml") for name in targets or NAMES],
            "methods": METHODS,
            "variants": {"all": [{}, {"together": True}]},
            "options": {"attempt": {"attention_width": WIDTH}},
        }
        return tiny_study(**values | changes)

    return study


@pytest.fixture(scope="module")
def first(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    return folder, run_study(make(), folder)


@pytest.fixture
def copy(first, tmp_path):
    shutil.copytree(first[0], tmp_path / "copy")
    return tmp_path / "copy"


def values(rows):
    return {(row.method, row.variant, row.target, row.metric): row.value for row in rows}


def untimed(rows):
    """The same without the wall time that the line of a source stage holds."""
    return {key: value for key, value in values(rows).items() if key[-1] != "seconds"}


# What is trained


def test_a_run_writes_the_lines_of_every_target_and_keeps_what_predicts_it(first, make):
    folder, results = first
    tasks = {data.task.name: data.task for data in targets_of(make())}
    counts = Counter((row.method, row.variant, row.target, row.metric) for row in results if row.target in NAMES)
    assert counts == {
        (method, variant, name, metric): 1
        for method in METHODS
        for variant in ("", TOGETHER)
        for name in NAMES
        for metric in metric_names(tasks[name])
    }
    assert read_results(folder / RESULTS) == results
    for name in NAMES:
        assert (prompt_folder(folder, name, "bmtpt", 8, 0, TOGETHER) / "card.json").is_file()
    assert values(results)["bmtpt", "", "pairs", "nll"] != values(results)["bmtpt", TOGETHER, "pairs", "nll"]


def test_a_target_has_its_share_of_what_the_targets_share(first):
    _, results = first
    numbers = {(row.method, row.variant): row.trained_parameters for row in results if row.target in NAMES}
    attention = 2 * D * WIDTH + 2 * D
    assert numbers["attempt", ""] == P * D + attention
    assert numbers["attempt", TOGETHER] == P * D + attention // 2
    for method in ("mpt", "bmtpt", "bmtpt_no_prior"):
        assert numbers[method, ""] == P * D + P + D
        assert numbers[method, TOGETHER] == P * D // 2 + P + D


def targets_of(study):
    return [load_data(load_task(name), study.data, limits=study.limits) for name in study.targets]


def by_hand(study, folder, method):
    """Train the targets together through the library, from the source stages that the study learned."""
    backbone, targets = Backbone.from_pretrained(study.backbone), targets_of(study)
    settings, sources = study.adapt.model_copy(update={"shots": 8, "seed": 0}), folder / "sources" / "seed0"
    if method == "bmtpt":
        return adapt_together(Posterior.load(sources / "m2"), targets, settings, backbone=backbone)
    record, learned = (
        get_method(method),
        Learned(prompts={"sentiment": Posterior.load(sources / "only-sentiment").mean}),
    )
    if method == "mpt":
        (file,) = sources.glob("mpt-*/mpt.safetensors")
        learned = Learned(own=load_file(file))
    return fit_method(record, backbone, targets, settings, study.options_of(record), learned=learned)


@pytest.mark.parametrize("method", ["attempt", "mpt", "bmtpt"])
def test_a_run_is_what_the_library_finds_for_several_targets(first, make, method):
    folder, results = first
    study = make()
    found, backbone = by_hand(study, folder, method), Backbone.from_pretrained(study.backbone)
    lines = values(results)
    for data in targets_of(study):
        name = data.task.name
        place = prompt_folder(folder, name, method, 8, 0, TOGETHER)
        kept = (PromptMixture if method == "attempt" else Prompt).load(place)
        # A study runs on one thread, and sums depend on the number of threads.
        torch.testing.assert_close(tensors(kept), tensors(found[name]), rtol=1e-4, atol=1e-4)
        evaluation = evaluate(backbone, kept, data.test)
        measured = {**evaluation.metrics, **evaluation.calibration}
        own = {metric: lines[method, TOGETHER, name, metric] for metric in measured}
        assert own == pytest.approx(measured, abs=1e-4)


def tensors(trained):
    return trained.tensors if isinstance(trained, PromptMixture) else {"prompts": trained.prompts}


def test_targets_share_the_attention_of_attempt_and_a_of_the_others(first):
    folder, _ = first
    mixtures = [PromptMixture.load(prompt_folder(folder, name, "attempt", 8, 0, TOGETHER)).tensors for name in NAMES]
    for part in ("down", "up", "gain", "bias"):
        assert torch.equal(mixtures[0][part], mixtures[1][part])
    assert not torch.equal(mixtures[0]["target"], mixtures[1]["target"])
    for method in ("mpt", "bmtpt", "bmtpt_no_prior"):
        one, other = (Prompt.load(prompt_folder(folder, name, method, 8, 0, TOGETHER)).prompts[0] for name in NAMES)
        singular = torch.linalg.svdvals((one / other).double())  # A ∘ (u vᵀ) over A ∘ (u' v'ᵀ) has rank one
        assert singular[1] < 1e-4 * singular[0]
        assert not torch.equal(one, other)


def test_one_target_together_is_one_target(make, tmp_path):
    results = run_study(make("pairs", methods=("bmtpt", "attempt")), tmp_path)
    found = values(results)
    alone = {key: value for key, value in found.items() if key[1] == "" and key[2] == "pairs"}
    assert alone
    for (method, _, target, metric), value in alone.items():
        assert found[method, TOGETHER, target, metric] == value


# The plan, and going on


def test_targets_together_are_one_job_for_every_method_shots_and_seed(make, tmp_path):
    jobs = Grid(make(methods=("bmtpt",), shots=[4, 8], seeds=[0, 1]), tmp_path).jobs()
    cells = [job for job in jobs if not job.on_demand]
    together = [job for job in cells if job.place.variant == TOGETHER]
    assert [(job.place.shots, job.place.seed) for job in together] == [(4, 0), (8, 0), (4, 1), (8, 1)]
    assert [place.target for place in together[0].lines] == list(NAMES)
    assert len(cells) - len(together) == 8
    assert together[0].name == "pairs+answers bmtpt[together=true] k=4 seed=0"


@pytest.mark.parametrize("prompts", ["lost", "kept"])
@pytest.mark.parametrize("target", NAMES)
def test_a_run_is_done_again_if_a_line_of_one_target_and_its_prompt_are_lost(first, make, copy, target, prompts):
    _, results = first
    if prompts == "lost":
        shutil.rmtree(copy / "prompts")
    lost = next(row for row in results if (row.method, row.variant, row.target) == ("bmtpt", TOGETHER, target))
    (copy / RESULTS).unlink()
    append_results(copy / RESULTS, [row for row in results if row != lost])
    trained = []
    found = run_study(make(), copy, lambda event: trained.append(event["stage"]))
    assert set(trained) == ({"pairs+answers bmtpt k=8 seed=0"} if prompts == "lost" else set())
    assert values(found) == values(results)
    assert len(found) == len(results)
    assert values(read_results(copy / RESULTS)) == values(results)
    again = [row.target for row in found if (row.method, row.variant) == ("bmtpt", TOGETHER)]
    assert again == [row.target for row in results if (row.method, row.variant) == ("bmtpt", TOGETHER)]


def test_nothing_is_done_again_where_all_lines_are_there(first, make, monkeypatch):
    folder, results = first
    monkeypatch.setattr("bmtpt.train.loop.Loop.run", lambda *_, **__: pytest.fail("it trained"))
    assert run_study(make(), folder) == results


def test_two_processes_find_the_same_lines(first, make, tmp_path):
    found = run_study(make(), tmp_path, processes=2)
    assert untimed(found) == untimed(first[1])
    assert [(row.method, row.variant, row.target, row.metric) for row in found] == list(values(first[1]))


# What cannot be


@pytest.mark.parametrize("targets", [("pairs",), ("answers", "pairs")])
def test_another_list_of_targets_is_refused(make, copy, targets):
    """Their order counts: it decides the draws of examples."""
    before = (copy / RESULTS).read_text()
    with pytest.raises(SettingsError, match=r"variants .*\[together=true\].targets = .* choose another"):
        run_study(make(*targets), copy)
    assert (copy / RESULTS).read_text() == before


@pytest.mark.parametrize(
    "changes",
    [{"together": True, "variants": {}}, {"variants": {"all": [{"together": True}]}}],
)
def test_methods_that_cannot_train_targets_together_are_named(make, changes):
    study = make(methods=("pt", "spot", "bmtpt"), **changes)
    with pytest.raises(SettingsError) as error:
        checked(study, "file.yaml")
    assert str(error.value) == (
        "file.yaml: option 'together': pt, spot cannot train several targets in one run; "
        "set it for attempt, mpt, bmtpt, bmtpt_no_prior only (in their variants)"
    )


def test_methods_that_cannot_may_stand_beside_variants_that_do(make, tmp_path):
    study = make(methods=("pt", "bmtpt"), variants={"bmtpt": [{"together": True}]})
    cells = [job for job in Grid(study, tmp_path).jobs() if not job.on_demand]
    assert [job.name for job in cells] == [
        "pairs pt k=8 seed=0",
        "pairs+answers bmtpt[together=true] k=8 seed=0",
        "answers pt k=8 seed=0",
    ]

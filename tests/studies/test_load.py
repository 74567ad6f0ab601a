"""Studies by name and by file: scales, what they extend, and the sentences for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bmtpt.errors import SettingsError
from bmtpt.report.names import OPTION_NAMES, SETTING_NAMES, options_of, variant_name
from bmtpt.report.tables import read_published
from bmtpt.settings import validated
from bmtpt.studies import load_study, named_studies
from bmtpt.studies.load import LIBRARY, checked, find_study, study_values
from bmtpt.studies.spec import StudySpec
from bmtpt.studies.variants import expand
from bmtpt.tasks import builtin_tasks

ISSUE = {
    *("paper-full", "paper-fewshot", "paper-scale", "prior", "particles", "kernels", "collapse-prompts"),
    *("task-information", "dissimilar", "decomposition", "ensemble", "smoothing"),
}
OURS = {
    "ablation",
    "causal",
    "few-labels",
    "few-labels-parts",
    "few-labels-room",
    "headroom",
    "label-use",
    "more-labels",
    "multi-target",
    "offline-posterior",
    "start",
    "sweep",
    "transfer-start",
    "tuning",
    "tuning-unfamiliar",
    "unfamiliar",
    "wording",
}
SCALES = ("smoke", "small", "paper")


TASK = {"name": "here", "file": "rows.csv", "text": "{text}", "labels": ["bad", "good"]}


def written(folder: Path, name: str, values: dict) -> Path:
    (folder / "here.yaml").write_text(yaml.safe_dump(TASK))
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder / f"{name}.yaml"


BASE = {"name": "base", "sources": ["sst2", "here.yaml"], "targets": ["cb"], "learn": {"steps": 5, "particles": 3}}


def test_a_study_lays_its_values_over_what_it_extends_and_a_scale_over_both(tmp_path):
    scales = {"small": {"learn": {"steps": 7}}, "paper": {"targets": ["rte"]}}
    written(tmp_path, "base", {**BASE, "scales": scales})
    own = {"extends": "base", "name": "own", "learn": {"particles": 4}, "scales": {"small": {"seeds": [1, 2]}}}
    path = written(tmp_path, "own", own)
    small, paper = load_study(path, "small"), load_study(path, "paper")
    assert (small.name, small.learn.steps, small.learn.particles, small.seeds) == ("own", 7, 4, (1, 2))
    assert (paper.learn.steps, paper.learn.particles, paper.targets, paper.seeds) == (5, 4, ("rte",), (0,))
    assert small.sources == ("sst2", str(tmp_path / "here.yaml"))
    assert load_study(path) == small


@pytest.mark.parametrize("name", [*named_studies(), "quickstart", "fewshot", "fewshot-auto", "fewshot-sigma3"])
def test_studies_that_were_run_with_balanced_draws_keep_them(name):
    others = (LIBRARY.parent / f"{name}.yaml", Path(__file__).parents[2] / "studies" / f"{name}.yaml")
    path = next((path for path in others if path.exists()), None) or find_study(name)
    at_random = ("few-labels", "more-labels", "transfer-start", "label-use", "offline-posterior", "causal")
    assert load_study(path).adapt.draw == ("random" if name.startswith(at_random) else "balanced")


def test_what_the_caller_gives_goes_over_the_scale(tmp_path):
    path = written(tmp_path, "base", {**BASE, "scales": {"small": {"backbone": "b"}}})
    found = load_study(path, "small", {"backbone": "c", "targets": ["rte", "wic"]})
    assert (found.backbone, found.targets) == ("c", ("rte", "wic"))


def test_a_target_may_be_a_source_only_where_the_study_says_so(tmp_path):
    path = written(tmp_path, "base", {**BASE, "sources": ["sst2", "rte"], "targets": ["rte", "cb"]})
    with pytest.raises(SettingsError, match=r"rte is both a source and a target; name it once, or set sources_as_"):
        load_study(path)
    assert load_study(path, changes={"sources_as_targets": True}).targets == ("rte", "cb")
    with pytest.raises(SettingsError, match=r"rte is both for tuning and a target; name it once$"):
        load_study(path, changes={"sources": ["sst2"], "tuning": ["rte"], "sources_as_targets": True})


def test_paper_full_has_the_21_targets_of_the_paper():
    study = load_study("paper-full", "paper")
    assert len(study.targets) == 21
    assert set(study.sources) - set(study.targets) == {"squad", "record"}


@pytest.mark.parametrize(
    ("name", "scale", "parts"),
    [
        ("particels", None, ["there is no study 'particels'", "did you mean 'particles'", ".yaml"]),
        ("particles", "smal", ["has no scale 'smal'", "did you mean 'small'"]),
        ("flat.yaml", "small", ["flat.yaml has no scales", "run it without one"]),
        ("tuned.yaml", None, ["cb is both for tuning and a target"]),
        ("twins.yaml", None, ["here is both a source and a target", "name it once"]),
        ("twice.yaml", None, ["here is a source twice", "name it once"]),
        ("orphan.yaml", None, ["cannot read", "nothing.yaml"]),
    ],
)
def test_a_wrong_name_or_scale_is_named_with_the_nearest_right_one(tmp_path, monkeypatch, name, scale, parts):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "flat", BASE)
    written(tmp_path, "tuned", {**BASE, "tuning": ["cb"]})
    written(tmp_path, "twins", {**BASE, "targets": ["cb", "also.yaml"]})
    written(tmp_path, "twice", {**BASE, "sources": ["here.yaml", "also.yaml"]})
    (tmp_path / "also.yaml").write_text(yaml.safe_dump({**TASK, "text": "other words: {text}"}))
    written(tmp_path, "orphan", {**BASE, "extends": "nothing"})
    with pytest.raises(SettingsError) as error:
        load_study(name, scale)
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"scales": ["small"]}, "option 'scales' must hold"),
        ({"scales": {"small": [1]}}, "option 'scales.small' must hold"),
        ({"scales": {1: {}, "paper": {}}}, "has no scale 'small'"),
        ({"extends": "odd"}, "'extends' leads back to odd.yaml"),
        ({"extends": "back"}, "'extends' leads back to odd.yaml"),
    ],
)
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path, values, part):
    written(tmp_path, "back", {**BASE, "extends": "odd"})
    with pytest.raises(SettingsError) as error:
        load_study(written(tmp_path, "odd", {**BASE, **values}))
    assert part in str(error.value)
    assert "\n" not in str(error.value)


# The studies that come with bmtpt


def test_every_study_of_the_issue_is_there():
    assert set(named_studies()) == ISSUE | OURS


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", sorted(ISSUE | OURS))
def test_a_study_that_comes_with_bmtpt_is_valid_at_every_scale(name, scale):
    values = study_values(find_study(name), scale)
    study = checked(validated(StudySpec, values, name), name)
    assert study.name == name
    assert study.title
    assert scale != "small" or len(study.seeds) >= 5 or name.startswith("tuning")  # their lines choose
    for task in (task for key in ("sources", "targets", "tuning") for task in values.get(key, [])):
        assert task in builtin_tasks() or Path(task).is_file()


def test_the_grids_of_the_issue_are_those_of_the_studies():
    def points(name: str) -> list[str]:
        return [point.name for point in expand(study_values(LIBRARY / f"{name}.yaml")["variants"]["bmtpt"])]

    assert points("particles") == [f"particles={M}" for M in (1, 3, 5, 7, 10, 15)]
    assert len(points("kernels")) == 10
    assert {"decompose=true", "decompose=false"} < set(points("decomposition"))


# Published scores


def test_published_scores_are_of_tasks_that_exist_and_have_a_source():
    published = read_published()
    for method in published["methods"]:
        assert set(method["sources"]) <= set(published["sources"])
        assert set(method["scores"]) <= set(builtin_tasks())
        assert all(40 < score < 100 for score in method["scores"].values())


def test_published_scores_average_to_the_published_averages():
    """The GLUE averages of the same source, which are in none of our files, would reveal a typing error."""
    glue = ("mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "cola")
    stated = {"full fine-tuning": 84.9, "LoRA": 85.3, "SPoT": 82.3, "ATTEMPT": 83.4, "MPT": 85.6, "DePT": 85.9}
    found = {method["name"]: method["scores"] for method in read_published()["methods"]}
    for name, average in stated.items():
        assert sum(found[name][task] for task in glue) / len(glue) == pytest.approx(average, abs=0.11)


def test_the_papers_preset_replaces_the_studys_own_settings_in_every_stage():
    plain = load_study("particles", "smoke", {})
    found = plain.as_in_the_paper()
    assert (found.learn.particle_init, found.learn.likelihood_unit, found.learn.batch_size) == (
        "independent",
        "token",
        1,
    )
    assert (found.adapt.prior_std, found.adapt.readout) == (30.0, "none")
    assert found.source_prompt.prompt_length == found.learn.prompt_length == 100
    assert (found.learn.steps, found.adapt.steps) == (plain.learn.steps, plain.adapt.steps)


@pytest.mark.parametrize("name", named_studies())
def test_every_setting_that_a_study_varies_has_a_printed_name(name):
    variants = {variant for each in load_study(name).contenders() for variant in (each.variant.name, *each.reread)}
    settings = {pair for each in variants if variant_name(each) != "untouched" for pair in options_of(each).items()}
    assert [pair for pair in settings if pair[0] not in OPTION_NAMES and "=".join(pair) not in SETTING_NAMES] == []

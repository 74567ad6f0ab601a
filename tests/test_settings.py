"""Settings from defaults, YAML and options, and the one sentence that refuses a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from bmtpt.errors import SettingsError
from bmtpt.settings import AdaptSettings, LearnSettings, LoopSettings, resolve, validated


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def refusal(kind: type[BaseModel], config: Path | None = None, options: dict[str, Any] | None = None) -> str:
    with pytest.raises(SettingsError) as error:
        resolve(kind, config, options)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert "pydantic" not in sentence
    return sentence


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    config = written(tmp_path, "steps: 7\nkernel: imq\n")
    settings = resolve(LearnSettings, config, {"kernel": "laplacian", "particles": None, "seed": 3})
    assert (settings.steps, settings.kernel, settings.seed) == (7, "laplacian", 3)
    assert settings.particles == LearnSettings().particles


def test_options_as_text_mean_what_yaml_means(tmp_path):
    config = written(tmp_path, "bandwidth: 2.5\ntrain_rows: 10\nlikelihood_scale: data\nlearning_rate: 1e-3\n")
    options = {"bandwidth": "2.5", "train_rows": "10", "likelihood_scale": "data", "learning_rate": "1e-3"}
    assert resolve(LearnSettings, config) == resolve(LearnSettings, None, options)
    assert resolve(LearnSettings, None, options).bandwidth == 2.5


def test_none_clears_what_the_file_sets_and_stays_a_word_where_it_is_one(tmp_path):
    config = written(tmp_path, "shots: 32\npatience: 2\n")
    settings = resolve(AdaptSettings, config, {"shots": "none", "prior": "none"})
    assert (settings.shots, settings.patience, settings.prior) == (None, 2, "none")


@pytest.mark.parametrize("kind", [LoopSettings, LearnSettings, AdaptSettings])
def test_resolved_settings_make_the_round_trip_through_yaml(tmp_path, kind):
    settings = resolve(kind, None, {"steps": 123, "learning_rate": 0.07})
    config = written(tmp_path, yaml.safe_dump(settings.model_dump(mode="json")))
    assert resolve(kind, config) == settings


def test_an_empty_file_means_the_defaults(tmp_path):
    assert resolve(LearnSettings, written(tmp_path, "# nothing yet\n")) == LearnSettings()


def test_an_unknown_option_is_named_with_the_nearest_one(tmp_path):
    config = written(tmp_path, "kernell: rbf\n")
    sentence = refusal(LearnSettings, config)
    assert str(config) in sentence
    assert "'kernell'" in sentence
    assert "'kernel'" in sentence
    assert "did you mean 'prior_std'" in refusal(AdaptSettings, None, {"priorstd": 1})


def test_a_key_that_is_no_text_is_an_unknown_option(tmp_path):
    assert "unknown option '1'" in refusal(LearnSettings, written(tmp_path, "1: rbf\n"))


WRONG = [
    (LearnSettings, "kernel", "rbff", ["did you mean 'rbf'"]),
    (LearnSettings, "bandwidth", "mediam", ["'median'", "number"]),
    (LearnSettings, "bandwidth", -1, ["'median'", "greater than 0"]),
    (LearnSettings, "bandwidth", "nan", ["'median'", "finite"]),
    (LearnSettings, "likelihood_scale", "dat", ["'mean'", "'data'", "number"]),
    (LearnSettings, "particles", 0, ["greater than 0"]),
    (LearnSettings, "steps", 1.5, ["integer"]),
    (LearnSettings, "learning_rate", ".inf", ["number"]),
    (LearnSettings, "learning_rate", "inf", ["finite"]),
    (LearnSettings, "seed", -1, ["greater than or equal to 0"]),
    (AdaptSettings, "prior_std", "aut", ["'auto'", "number"]),
    (AdaptSettings, "prior_std", 0, ["'auto'", "greater than 0"]),
    (AdaptSettings, "prior_std_grid", [], ["at least 1"]),
    (AdaptSettings, "decompose", "perhaps", ["boolean"]),
    (AdaptSettings, "start", "men", ["did you mean 'mean'"]),
    (AdaptSettings, "shots", 0, ["greater than 0"]),
]


@pytest.mark.parametrize(("kind", "option", "value", "parts"), WRONG)
def test_a_wrong_value_is_refused_in_one_sentence_that_names_it(tmp_path, kind, option, value, parts):
    for config in (None, written(tmp_path, yaml.safe_dump({option: value}))):
        sentence = refusal(kind, config, None if config else {option: value})
        assert f"option '{option}' cannot be {value!r}" in sentence
        assert (str(config) in sentence) == (config is not None)
        assert all(part in sentence for part in parts), sentence


def test_one_wrong_number_of_a_list_is_named():
    sentence = refusal(AdaptSettings, None, {"prior_std_grid": (1.0, -2.0)})
    assert "option 'prior_std_grid' cannot be -2.0: it must be greater than 0" in sentence


def test_starting_around_a_trained_prompt_must_leave_steps_for_the_particles():
    sentence = refusal(LearnSettings, None, {"particle_init": "prompt", "steps": 100, "init_steps": 100})
    assert "init_steps is 100" in sentence
    assert resolve(LearnSettings, None, {"particle_init": "prompt", "steps": 300, "init_steps": 100}).svgd_steps == 200
    assert resolve(LearnSettings, None, {"particle_init": "shared", "steps": 300}).svgd_steps == 300


@pytest.mark.parametrize("asked", [("likelihood", "labels"), ("source_objective", "readout")])
def test_a_loss_over_labels_is_no_mean_over_tokens(asked):
    sentence = refusal(LearnSettings, None, {"likelihood_unit": "token", asked[0]: asked[1]})
    assert f"{asked[0]} '{asked[1]}' is a mean over examples: set likelihood_unit to 'example'" in sentence


def test_a_draw_of_one_example_cannot_be_divided():
    sentence = refusal(LearnSettings, None, {"source_objective": "readout", "batch_size": 1})
    assert "batch_size is 1: source_objective 'readout' needs 2 or more" in sentence


class Inner(BaseModel):
    model_config = {"extra": "forbid"}
    width: int = 1


class Outer(BaseModel):
    model_config = {"extra": "forbid"}
    inner: Inner = Inner()
    name: str


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"name": "a", "inner": {"widht": 2}}, "unknown option 'inner.widht'; did you mean 'width'?"),
        ({"name": "a", "inner": {"width": "x"}}, "option 'inner.width' cannot be 'x'"),
        ({}, "option 'name' is missing"),
    ],
)
def test_an_option_inside_another_is_named_with_its_path(values, part):
    with pytest.raises(SettingsError) as error:
        validated(Outer, values, "study.yaml")
    assert str(error.value).startswith(f"study.yaml: {part}")


def test_a_missing_file_is_named(tmp_path):
    assert "none.yaml" in refusal(LearnSettings, tmp_path / "none.yaml")
    assert str(tmp_path) in refusal(LearnSettings, tmp_path)


@pytest.mark.parametrize(("text", "line"), [("steps: [1\n", 2), ("a: b: c\n", 1)])
def test_a_file_that_is_no_yaml_is_named_in_one_sentence(tmp_path, text, line):
    config = written(tmp_path, text)
    assert f"{config}, line {line}: this YAML cannot be read" in refusal(LearnSettings, config)


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    assert "'key: value'" in refusal(LearnSettings, written(tmp_path, "- steps\n- kernel\n"))


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        LearnSettings().steps = 3  # type: ignore[misc]


PAPER_SOURCE = {
    "particles": 5, "kernel": "rbf", "bandwidth": "median", "scope": "prompt", "repulsion": 1, "annealing": "none",
    "likelihood_unit": "token", "likelihood": "tokens", "source_objective": "words", "likelihood_scale": "mean",
    "prompt_length": 100, "particle_init": "independent", "batch_size": 1, "task_factors": False,
}  # fmt: skip
PAPER_TARGET = {
    "prior": "mean", "start": "mean", "decompose": True, "freeze_full": False, "draw": "balanced",
    "likelihood": "tokens", "readout": "none", "calibrate": "none", "normalise": "none", "ensemble": False,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "wanted"), [(LearnSettings, PAPER_SOURCE), (AdaptSettings, PAPER_TARGET)])
def test_the_papers_preset_is_the_paper_to_the_letter_and_whatever_is_given_wins(tmp_path, kind, wanted):
    found = kind(preset="paper")
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert kind(preset="paper", steps=7, batch_size=3) == found.model_copy(update={"steps": 7, "batch_size": 3})
    assert kind(preset="default") == kind()
    (tmp_path / "paper.yaml").write_text("preset: paper\nsteps: 7\n")
    assert resolve(kind, tmp_path / "paper.yaml") == found.model_copy(update={"steps": 7})
    assert kind.model_validate(found.model_dump()) == found


def test_the_papers_prior_has_one_width():
    assert isinstance(AdaptSettings(preset="paper").prior_std, float)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="preset cannot be 'papers'; did you mean 'paper'"):
        LearnSettings(preset="papers")

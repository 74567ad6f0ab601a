"""A study is fitted to the machine once, and the choice is kept."""

from __future__ import annotations

import json

import pytest
import yaml

from bmtpt.backbone.execution import AUTOMATIC
from bmtpt.errors import SettingsError
from bmtpt.studies import speed
from bmtpt.studies.speed import CHOICE, seconds_per_step, sized_study


@pytest.fixture
def scaled(tmp_path, tiny_t5_folder, tiny_task_folder):
    values = {
        "name": "scaled",
        "backbone": str(tiny_t5_folder),
        "sources": [f"{tiny_task_folder}/sentiment.yaml", f"{tiny_task_folder}/pairs.yaml"],
        "targets": [f"{tiny_task_folder}/answers.yaml"],
        "learn": {"particles": 2, "prompt_length": 3},
        "source_prompt": {"particles": 1, "prompt_length": 3},
        "scales": {"small": {"learn": {"steps": 90}}, "smaller": {"learn": {"steps": 30}}},
    }
    path = tmp_path / "scaled.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(("per_step", "scale"), [(1.0, "small"), (1.2, "smaller"), (60.0, "smaller")])
def test_the_largest_scale_that_fits_is_taken_and_else_the_last(scaled, tmp_path, monkeypatch, per_step, scale):
    monkeypatch.setattr(speed, "seconds_per_step", lambda study, execution: per_step)
    found = sized_study(scaled, tmp_path / "run", 100, AUTOMATIC)
    assert found.scale == scale
    assert found.seconds == per_step * found.study.learn.steps


def test_the_choice_is_kept_so_that_a_second_run_is_the_same_on_a_machine_that_became_slow(
    scaled, tmp_path, monkeypatch
):
    monkeypatch.setattr(speed, "seconds_per_step", lambda study, execution: 1.0)
    first = sized_study(scaled, tmp_path / "run", 100, AUTOMATIC)
    monkeypatch.setattr(speed, "seconds_per_step", lambda study, execution: pytest.fail("timed again"))
    assert sized_study(scaled, tmp_path / "run", 0.1, AUTOMATIC) == first


def test_a_kept_choice_that_the_study_does_not_have_is_refused(scaled, tmp_path):
    (tmp_path / CHOICE).write_text(json.dumps({"scale": "huge", "seconds_per_step": 1.0}))
    with pytest.raises(SettingsError, match=r"scale\.json names scale 'huge', which scaled\.yaml lacks"):
        sized_study(scaled, tmp_path, 100, AUTOMATIC)


def test_a_few_real_steps_are_timed_and_leave_nothing(scaled, tmp_path):
    from bmtpt.studies import load_study

    before = set(tmp_path.iterdir())
    assert 0 < seconds_per_step(load_study(scaled), AUTOMATIC) < 5
    assert set(tmp_path.iterdir()) == before

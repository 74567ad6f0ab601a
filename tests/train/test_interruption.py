"""On SIGTERM a run writes a checkpoint, exits with status 143 and can be resumed to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import bmtpt
from bmtpt.settings import LearnSettings
from bmtpt.stages.source import learn
from bmtpt.train.interruption import termination_requested

SETTINGS = {"steps": 6, "evaluate_every": 4, "batch_size": 2, "particles": 2, "prompt_length": 3, "validation_rows": 4}
SCRIPT = """
import os, signal, sys
from bmtpt.settings import LearnSettings
from bmtpt.stages.source import learn
from bmtpt.backbone import Backbone
from bmtpt.tasks import load_data, load_task

def end_at_step_2(event):
    if event["event"] == "step" and event["step"] == 1:
        os.kill(os.getpid(), signal.SIGTERM)

backbone = Backbone.from_pretrained(sys.argv[1], precision="float32", device="cpu")
sources = [load_data(load_task(sys.argv[2] + "/sentiment.yaml"))]
learn(backbone, sources, LearnSettings(**eval(sys.argv[4])), folder=sys.argv[3], listener=end_at_step_2)
"""


def test_sigterm_writes_a_checkpoint_and_the_run_resumes_to_the_same_bits(
    tiny_t5_folder, tiny_task_folder, tiny_backbone, tiny_tasks, tmp_path
):
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tiny_t5_folder), str(tiny_task_folder), str(folder), repr(SETTINGS)]
    environment = os.environ | {"PYTHONPATH": str(Path(bmtpt.__file__).parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 143, done.stderr
    assert (folder / "checkpoint.safetensors").exists()
    assert not (folder / "card.json").exists()
    settings, sources = LearnSettings.model_validate(SETTINGS), [tiny_tasks["sentiment"]]
    seen: list[int] = []
    resumed = learn(
        tiny_backbone,
        sources,
        settings,
        folder=folder,
        resume=True,
        listener=lambda event: seen.append(event["step"]) if event["event"] == "step" else None,
    )
    assert seen == [2, 3, 4, 5]
    assert torch.equal(resumed.particles, learn(tiny_backbone, sources, settings).particles)


def test_a_signal_that_arrives_when_the_run_no_longer_asks_ends_the_process_after_it():
    def receive() -> None:
        with termination_requested() as requested:
            os.kill(os.getpid(), signal.SIGTERM)
            assert requested()

    with pytest.raises(SystemExit) as stop:
        receive()
    assert stop.value.code == 143


def test_the_handler_of_before_is_back_afterwards_and_other_threads_have_none():
    before = signal.getsignal(signal.SIGTERM)
    with termination_requested() as requested:
        assert not requested()
    assert signal.getsignal(signal.SIGTERM) == before
    answers: list[bool] = []

    def ask() -> None:
        with termination_requested() as requested:
            answers.append(requested())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]

"""The fault harnesses run, and see what they look for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import bmtpt
from environment import can_mount
from runs import contents, differences, half_written

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def ran(script: str, *arguments: str) -> list[dict]:
    """Run a harness in a process of its own, for it forks; return its lines."""
    out = Path(arguments[-1])
    environment = os.environ | {"PYTHONPATH": str(Path(bmtpt.__file__).parent.parent)}
    done = subprocess.run([sys.executable, BENCHMARKS / script, *arguments], env=environment, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_run_that_is_killed_and_resumed_leaves_what_one_leaves_that_was_not(tmp_path):
    lines = ran("faults.py", "--kills", "3", "--settings", "learn", "--out", str(tmp_path / "lines.jsonl"))
    assert sum(len(line["kills"]) for line in lines) >= 3
    assert [line["faults"] for line in lines] == [[]] * len(lines)


@pytest.mark.skipif(not can_mount(), reason="file systems cannot be mounted here")
def test_a_failing_machine_ends_a_run_in_a_sentence_and_the_next_run_is_well(tmp_path):
    cases = ["--cases", "full disk", "two processes", "--settings", "learn, around a prompt"]
    lines = ran("environment.py", *cases, "--trials", "1", "--out", str(tmp_path / "lines.jsonl"))
    trials = [trial for line in lines for trial in line["trials"]]
    assert len(trials) == 3
    assert [trial["faults"] for trial in trials] == [[]] * 3
    assert any(trial["exit"] == 2 for trial in trials)


def test_folders_differ_by_a_bit_or_a_file_and_not_by_times(tmp_path):
    for name, seconds, value in (("one", 1.5, 1.0), ("same", 2.5, 1.0), ("other", 1.5, 1.0 + 2**-23)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").write_text(json.dumps({"seconds": seconds, "steps": 3}))
        save_file({"particles": torch.tensor([value])}, tmp_path / name / "posterior.safetensors")
    one, same, other = (contents(tmp_path / name) for name in ("one", "same", "other"))
    assert differences(same, one) == []
    (found,) = differences(other, one)
    assert found.startswith("posterior.safetensors differs")
    (tmp_path / "same" / ".card.json.0123abcd.tmp").touch()
    assert differences(contents(tmp_path / "same"), one) == [".card.json.0123abcd.tmp is left over"]


def test_files_that_are_cut_off_are_half_written(tmp_path):
    save_file({"particles": torch.zeros(9)}, tmp_path / "posterior.safetensors")
    (tmp_path / "card.json").write_text('{"steps": 3}')
    (tmp_path / "events.jsonl").write_text('{"step": 0}\n{"ste')
    assert half_written(tmp_path) == []
    for name in ("posterior.safetensors", "card.json"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / "events.jsonl").write_text('{"ste\n{"step": 1}\n')
    assert [problem.split()[0] for problem in half_written(tmp_path)] == [
        "card.json", "events.jsonl", "posterior.safetensors",
    ]  # fmt: skip

from __future__ import annotations

import json

import pytest


def test_the_commands_score_a_prompt_and_write_a_task(bmtpt, runs, tiny_task_folder, tmp_path):
    written = bmtpt("tasks", "export", tiny_task_folder / "sentiment.yaml", "--out", tmp_path)
    assert written.out == f"task bmtpt_sentiment written to {tmp_path}\n", written.err
    pytest.importorskip("lm_eval")
    ran = bmtpt("lm-eval", "--prompt", runs / "prompt", "--json")
    assert ran.code == 0, ran.err
    found = {each["metric"]: each["value"] for each in map(json.loads, ran.out.splitlines())}
    lines = map(json.loads, bmtpt("evaluate", "--prompt", runs / "prompt", "--json").out.splitlines())
    wanted = {each["metric"]: each["value"] for each in lines}
    assert found["acc"] == pytest.approx(wanted["accuracy"] / 100)
    assert found["f1"] == pytest.approx(wanted["f1"] / 100)


def test_the_command_without_the_harness_gives_one_sentence(bmtpt, monkeypatch):
    monkeypatch.setattr("bmtpt.lm_eval.LM", object)
    ran = bmtpt("lm-eval", "--prompt", "nowhere")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: lm-evaluation-harness needs the lm-eval package; run: pip install 'bmtpt[lm-eval]'\n"

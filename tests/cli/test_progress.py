"""What a person sees of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import json
import re
import time
from typing import Any

import pytest
from rich.console import Console

from bmtpt.cli import progress
from bmtpt.cli.progress import Expected, TrainingProgress, duration, last_step

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d)[;m]")


def piped() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=False), out


def step(number: int, steps: int = 10, **more: Any) -> dict[str, Any]:
    return {"event": "step", "step": number, "steps": steps, "loss": {"sst2": [0.5, 0.7]}, **more}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_piped_output_gets_the_first_step_then_a_line_every_ten_seconds_and_the_end(clock):
    console, out = piped()
    with TrainingProgress(console, "learn") as heard:
        for number in range(10):
            heard(step(number))
            clock[0] += 4
        heard({"event": "end", "step": 10, "steps": 10, "seconds": 40.0})
    assert out.getvalue().splitlines() == [
        "learn: 1 of 10, loss sst2 0.60",
        "learn: 4 of 10, loss sst2 0.60, about 24 s left",
        "learn: 7 of 10, loss sst2 0.60, about 12 s left",
        "learn: 10 of 10, loss sst2 0.60",
        "learn: 10 of 10, finished in 40 s",
    ]


def test_piped_output_tells_of_the_first_validation_and_of_the_last(clock):
    console, out = piped()
    with TrainingProgress(console, "learn") as heard:
        for event in ({"step": -1}, step(0), step(1), {"step": 1}, step(2), {"step": 2}, {"event": "end", "step": 3}):
            heard({"event": "validating", "steps": 3, "seconds": 90.0} | event)
            clock[0] += 5 if event["step"] < 2 else 30
    assert out.getvalue().splitlines() == [
        "learn: 0 of 3, validating",
        "learn: 2 of 10, loss sst2 0.60, about 40 s left",
        "learn: 3 of 10, loss sst2 0.60, about 52 s left",
        "learn: 3 of 3, validating",
        "learn: 3 of 3, finished in 1 min 30 s",
    ]


def test_the_time_left_of_a_resumed_stage_counts_from_where_it_went_on(clock):
    console, out = piped()
    with TrainingProgress(console, "learn") as heard:
        heard(step(89, 100))
        clock[0] += 20
        heard(step(91, 100))
    assert out.getvalue().splitlines()[-1].endswith("about 1 min 20 s left")  # 8 steps of 10 s


def test_every_job_of_a_study_gets_a_line_with_the_time_left(clock):
    console, out = piped()
    with TrainingProgress(console, expected=Expected(60.0, per_step=1.0)) as heard:
        heard({"event": "jobs", "stage": "jobs", "step": 0, "steps": 4, "name": "starting 2 processes"})
        clock[0] += 15
        heard({"event": "jobs", "stage": "jobs", "step": 1, "steps": 4, "name": "cb pt k=16 seed=0"})
        clock[0] += 75
        heard({"event": "jobs", "stage": "jobs", "step": 3, "steps": 4, "name": "cb bmtpt k=16 seed=0"})
    assert out.getvalue().splitlines() == [
        "jobs: 0 of 4, starting 2 processes, about 1 min 0 s left",
        "jobs: 1 of 4, cb pt k=16 seed=0, about 45 s left",
        "jobs: 3 of 4, cb bmtpt k=16 seed=0, about 30 s left",  # longer than expected: 3 jobs took 90 s
    ]


def test_source_stages_of_other_processes_are_shown_from_their_event_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    console, out = piped()
    with TrainingProgress(console, folder=tmp_path) as heard:
        heard({"event": "jobs", "stage": "jobs", "step": 0, "steps": 4, "name": "starting"})
        log = tmp_path / "sources" / "seed0" / "m3" / "events.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text(json.dumps(step(6)) + "\n" + '{"event": "st')
        until = time.time() + 10
        while "m3" not in out.getvalue() and time.time() < until:
            time.sleep(0.01)
    assert "jobs: 0 of 4, source stage m3: step 7, loss sst2 0.60" in out.getvalue()


def on_terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=width, height=25), out


def learn_ten_steps(console: Console, clock: list[float]) -> None:
    with TrainingProgress(console, "learn") as heard:
        for number in range(10):
            heard(step(number, loss={"sst2": [2.0 - 0.1 * number, 1.0 - 0.1 * number], "mrpc": [0.1 * number + 0.5]}))
            clock[0] += 1
        heard({"event": "validating", "step": 9, "steps": 10})


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_gets_one_bar_and_the_curve_and_last_loss_of_each_task(clock, width):
    console, out = on_terminal(width)
    learn_ten_steps(console, clock)
    text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
    *_, bar, first, second = (line for line in text.splitlines() if line.strip())
    assert "━" in bar
    assert "10/10" in bar
    assert "validating" in bar
    assert first.split() == ["sst2", "█▇▆▆▅▄▃▃▂▁", "0.60"]
    assert second.split() == ["mrpc", "▁▂▃▃▄▅▆▆▇█", "1.40"]
    assert max(map(len, text.splitlines())) <= width


def test_without_colour_a_terminal_gets_no_colour(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured, out = on_terminal()
    learn_ten_steps(coloured, clock)
    assert COLOUR.search(out.getvalue())
    monkeypatch.setenv("NO_COLOR", "1")
    plain, out = on_terminal()
    learn_ten_steps(plain, clock)
    assert "█" in out.getvalue()
    assert not COLOUR.search(out.getvalue())


def test_a_dumb_terminal_gets_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    console, out = on_terminal()
    learn_ten_steps(console, clock)
    assert out.getvalue().splitlines() == ["learn: 1 of 10, loss sst2 1.50 mrpc 0.50", "learn: 10 of 10, validating"]


def test_a_terminal_shows_the_curves_of_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOOKS", 0.01)
    console, out = on_terminal()
    log = tmp_path / "sources" / "seed0" / "m3" / "events.jsonl"
    log.parent.mkdir(parents=True)
    with TrainingProgress(console, folder=tmp_path) as heard:
        heard({"event": "jobs", "stage": "jobs", "step": 0, "steps": 4, "name": "starting"})
        until = time.time() + 20
        for number, wanted in enumerate(["sst2  ▁ ", "sst2  ▁█ "]):
            log.write_text(json.dumps(step(number, loss={"sst2": [1.0 + number]})) + "\n")
            while wanted not in re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()) and time.time() < until:
                time.sleep(0.01)
        assert time.time() < until


def test_a_run_that_never_begins_prints_nothing():
    console, out = piped()
    with TrainingProgress(console, "learn"):
        pass
    assert out.getvalue() == ""


def test_the_last_step_of_a_log_is_the_last_whole_line_of_a_step(tmp_path):
    log = tmp_path / "events.jsonl"
    log.write_text("")
    assert last_step(log) is None
    lines = [json.dumps(step(number)) for number in range(300)]
    log.write_text("\n".join([*lines, '{"event": "diagnostics", "step": 299}', '{"event": "step", "st']))
    found = last_step(log)
    assert found is not None
    assert found["step"] == 299


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (4800, "1 h 20 min")]
)
def test_durations_are_read_in_the_largest_two_units(seconds, words):
    assert duration(seconds) == words

"""The quickstart on the tiny model: it measures, tells, sums up and asks for a text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from bmtpt.backbone.execution import AUTOMATIC
from bmtpt.cli import quickstart_command as quickstart
from bmtpt.cli.quickstart_command import QUICKSTART, what_it_shows
from bmtpt.report.terminal import folded
from bmtpt.results import read_results


@pytest.fixture(scope="module")
def ran(bmtpt, tmp_path_factory, tiny_quickstart) -> tuple[Path, Any]:
    """A finished quickstart: its folder and what it printed."""
    out = tmp_path_factory.mktemp("out")
    with patch.object(quickstart, "QUICKSTART", tiny_quickstart):
        return out, bmtpt("quickstart", "--out", out, "--jobs", "1")


def test_it_tells_its_speed_its_progress_what_came_out_and_how_to_go_on(bmtpt, ran):
    folder, printed = ran
    assert printed.code == 0, printed.err
    assert re.search(
        r"^A step of the source stage takes \d\.\d\d s here, so the scale is 'small' \(2 ste", printed.err, re.M
    )
    assert re.search(r"^m2: 2 of 2, finished in \d+ s$", printed.err, re.MULTILINE)
    shown = " ".join(printed.out.split())
    assert re.search(r"On sentiment, 8 labelled examples take accuracy from \d+ \(an untrained prompt; ", shown)
    command = re.search(r"^  echo '(.*)' \| bmtpt predict --prompt (.*)$", printed.out, re.MULTILINE)
    assert command
    answered = bmtpt("predict", "--prompt", command[2], stdin=f"{command[1]}\n")
    assert answered.code == 0, answered.err
    assert read_results(folder / "results.jsonl")


def test_a_second_run_prints_the_same_and_on_a_terminal_asks_for_a_text(bmtpt, ran, monkeypatch, tiny_quickstart):
    folder, printed = ran
    texts: list[str] = []
    monkeypatch.setattr(quickstart, "QUICKSTART", tiny_quickstart)
    monkeypatch.setattr(quickstart, "_answer", lambda prompt, text, execution: texts.append(text))
    monkeypatch.setattr(quickstart, "on_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: " what is it ? ")
    assert bmtpt("quickstart", "--out", folder, "--jobs", "1").out == printed.out
    assert texts == ["what is it ?"]


def test_enter_alone_asks_nothing_of_the_model(monkeypatch, tmp_path):
    monkeypatch.setattr(quickstart, "_answer", lambda prompt, text, execution: pytest.fail("it answered"))
    monkeypatch.setattr(quickstart, "on_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "")
    quickstart.try_a_text(tmp_path, AUTOMATIC)


def test_a_text_is_answered_with_its_label_and_probability(ran, capsys):
    folder, _ = ran
    quickstart._answer(next((folder / "prompts").iterdir()), "the film is good .", AUTOMATIC)
    assert re.fullmatch(r"(positive|negative) \(probability \d\.\d\d\)\n", capsys.readouterr().out)


def test_the_sentence_is_made_of_the_lines(ran):
    read_out = "readout=linear,unlabelled_rows=64"
    values = {("pt", "steps=0"): 1.0, ("pt", f"steps=0,{read_out}"): 40.0}
    values |= {("pt", read_out): 50.0, ("bmtpt", read_out): 62.0}
    results = [
        line.model_copy(update={"value": values.get((line.method, line.variant), 7.0)})
        for line in read_results(ran[0] / "results.jsonl")
    ]
    constant = round(next(line.constant_answer for line in results if line.constant_answer))
    assert what_it_shows(results) == (
        "On sentiment, 8 labelled examples take accuracy from 1 (an untrained prompt; a constant answer has "
        f"{constant}) to 40 with a readout of it, and to 50 with plain prompt tuning and 62 with BMTPT, read out."
    )


def test_the_text_to_try_fits_the_last_target_of_the_shipped_quickstart():
    from bmtpt.studies import load_study
    from bmtpt.tasks import load_task
    from bmtpt.tasks.spec import placeholders

    study = load_study(QUICKSTART)
    assert len(placeholders(load_task(study.targets[-1]).text)) == 1


def test_every_task_of_the_shipped_quickstart_has_offline_rows():
    from bmtpt.studies import load_study
    from bmtpt.tasks import load_task

    study = load_study(QUICKSTART)
    assert all(load_task(name).offline for name in (*study.sources, *study.targets))


def test_the_readme_shows_what_the_committed_lines_say(bmtpt, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    lines = root / "studies" / "results" / "quickstart.jsonl"
    tables = bmtpt("table", "--text", "--no-differences", lines).out
    shown = "\n".join(line.rstrip() for line in tables.strip("\n").splitlines())
    assert f"\n{shown}\n\n{folded(what_it_shows(read_results(lines)), 80)}\n\n" in readme

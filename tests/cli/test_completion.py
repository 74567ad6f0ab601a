"""What a shell completes, and how little it loads for that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any, get_args

import pytest
import typer
from typer._completion_classes import BashComplete

from bmtpt.cli import app
from bmtpt.cli.train_commands import AdaptOptions, LearnOptions

HEAVY = {"torch", "transformers", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "safetensors"}
LITERAL = re.compile(r"Literal\[(.*?)\]")


COMMAND: Any = typer.main.get_command(app)


def completed(line: str) -> list[str]:
    """What the last word of a line may become."""
    *words, last = line.split(" ")
    shell = BashComplete(COMMAND, {}, "bmtpt", "_BMTPT_COMPLETE")
    return [item.value for item in shell.get_completions(words, last)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ta", ["table", "tasks"]),
        ("tasks ch", ["check"]),
        ("tasks show ss", ["sst2"]),
        ("headroom ss", ["sst2"]),
        ("learn --source ss", ["sst2"]),
        ("adapt --target cola", ["cola"]),
        ("evaluate --task sciq", ["sciq"]),
        ("table x.jsonl --target sciq", ["sciq"]),
        ("learn --ker", ["--kernel"]),
        ("learn --backbone o", ["offline", "offline-causal"]),
        ("adapt --data o", ["offline"]),
        ("serve --device c", ["cpu", "cuda"]),
        ("learn --preset p", ["paper"]),
        ("evaluate --split s", ["select"]),
        ("evaluate --scorer g", ["generate"]),
        ("predict --format j", ["jsonl"]),
        ("predict --on-error r", ["report"]),
        ("predict --normalise p", ["pmi"]),
        ("export prompt --to p", ["peft"]),
        ("study unf", ["unfamiliar"]),
        ("sweep sw", ["sweep"]),
        ("study particles --scale s", ["smoke", "small"]),
        ("study particles --on s", ["slurm"]),
        ("study particles --method bm", ["bmtpt", "bmtpt_no_prior"]),
        ("table --method spo", ["spot"]),
        ("table --floor encoder", ["encoder_logreg"]),
        ("table --metric kept", ["kept_bytes"]),
        ("sweep --metric accu", ["accuracy"]),
    ],
)
def test_a_shell_completes_commands_options_and_values(line, words):
    assert completed(line) == words


@pytest.mark.parametrize("command", [("learn", LearnOptions), ("adapt", AdaptOptions)])
def test_every_setting_with_few_values_completes_to_them(command):
    name, options = command
    found = 0
    for field, info in options.model_fields.items():
        if values := re.findall(r"'(\w+)'", "".join(LITERAL.findall(str(info.annotation)))):
            assert completed(f"{name} --{field.replace('_', '-')} ") == values
            found += 1
    assert found >= 2


def test_each_shared_option_with_few_values_completes_to_them():
    from bmtpt.backbone.execution import EngineName, Memory, Precision

    for option, vocabulary in (("engine", EngineName), ("precision", Precision), ("memory", Memory)):
        assert completed(f"study particles --{option} ") == list(get_args(vocabulary))


def test_tasks_and_studies_complete_to_all_that_there_are():
    from bmtpt.studies import named_studies
    from bmtpt.tasks import builtin_tasks

    assert completed("learn --source ") == list(builtin_tasks())
    assert completed("study ") == named_studies()


def test_paths_are_left_to_the_shell():
    for line in ("evaluate --prompt pro", "table stu", "report --out x", "predict --prompt p rows"):
        assert completed(line) == []


def answered(line: str) -> Any:
    shell = {"_BMTPT_COMPLETE": "complete_bash", "COMP_WORDS": f"bmtpt {line}", "COMP_CWORD": str(len(line.split()))}
    code = (
        "import sys\nfrom bmtpt.cli import main\nsys.argv = ['bmtpt']\n"
        "try:\n    main()\nfinally:\n    print(*(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | shell)


@pytest.mark.parametrize(("line", "word"), [("learn --source ss", "sst2"), ("study --method spo", "spot")])
def test_a_completion_loads_nothing_heavy(line, word):
    ran = answered(line)
    assert ran.stdout.split() == [word]
    assert "typer" in ran.stderr.split()
    assert HEAVY.isdisjoint(ran.stderr.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_bmtpt(bmtpt, shell, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    ran = bmtpt("--show-completion", shell)
    assert ran.code == 0, ran.err
    assert f"_BMTPT_COMPLETE=complete_{shell}" in ran.out

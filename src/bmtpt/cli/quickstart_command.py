"""`bmtpt quickstart`: the whole method in a few minutes, on a model and rows that come from PyPI."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bmtpt.cli.common import load_backbone
from bmtpt.cli.console import ERR, doing, say, tell
from bmtpt.cli.options import Device, Jobs, Json, PrecisionOption, StudyFolder, execution_of
from bmtpt.cli.progress import Expected, duration
from bmtpt.cli.study_commands import run_and_report

if TYPE_CHECKING:
    from bmtpt.backbone.execution import Execution
    from bmtpt.results import Result

QUICKSTART = Path(__file__).parent.parent / "studies" / "quickstart.yaml"
EXAMPLE_TEXT = "How far is the Moon from the Earth?"
"""A text for the quickstart's last target, for the command to try next."""

READ_OUT = "readout=linear,unlabelled_rows=64"
"""The variant of the quickstart's prompts that are read out."""

SOURCE_STAGE_SECONDS = 95.0
"""The longest that the source stage may take."""

WHOLE_OVER_SOURCE_STAGE = 2.2
START_SECONDS = 25.0
"""Measured: a run takes 2.2 times its source stage, and 25 s for imports, loading the model and the report."""


def quickstart(
    out: StudyFolder = Path("bmtpt-quickstart"),
    jobs: Jobs = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    as_json: Json = False,
) -> None:
    """Run the whole method on a real T5 and real data, without any hub (under 4 minutes on 2 cores)."""
    from bmtpt.studies.run import prompt_folder
    from bmtpt.studies.speed import sized_study
    from bmtpt.tasks import load_task

    execution = execution_of(device, precision)
    with doing("timing a few steps"):
        sized = sized_study(QUICKSTART, out, SOURCE_STAGE_SECONDS, execution)
    study, seconds = sized.study, START_SECONDS + WHOLE_OVER_SOURCE_STAGE * sized.seconds
    ERR.print(
        f"A step of the source stage takes {sized.seconds_per_step:.2f} s here, so the scale is '{sized.scale}' "
        f"({study.learn.steps} steps): about {duration(seconds)} in all.",
        highlight=False,
        soft_wrap=True,
    )
    expected = Expected(seconds, sized.seconds_per_step)
    results = run_and_report(study, out, jobs, execution, expected, as_json=as_json)
    if as_json:
        return
    say("")
    tell(what_it_shows(results))
    target = load_task(study.targets[-1]).name
    try_a_text(prompt_folder(out, target, "bmtpt", study.shots[0], study.seeds[0], READ_OUT), execution)


def what_it_shows(results: Sequence[Result]) -> str:
    """Say what each target's labels bought: mean scores of an untrained prompt and, read out, of it and the trained."""
    from statistics import fmean

    scores: dict[str, dict[str, list[Result]]] = {}
    for line in results:
        if line.primary and line.method in ("pt", "bmtpt"):
            by_method = scores.setdefault(line.target, {})
            by_method.setdefault(f"{line.method}[{line.variant}]", []).append(line)
    said = []
    for target, lines in scores.items():
        mean = {method: fmean(line.value for line in own) for method, own in lines.items()}
        first = lines["bmtpt[]"][0]
        constant = "" if first.constant_answer is None else f"; a constant answer has {first.constant_answer:.0f}"
        said.append(
            f"on {target}, {first.shots} labelled examples take {first.metric} from {mean['pt[steps=0]']:.0f} "
            f"(an untrained prompt{constant}) to {mean[f'pt[steps=0,{READ_OUT}]']:.0f} with a readout of it, and to "
            f"{mean[f'pt[{READ_OUT}]']:.0f} with plain prompt tuning and {mean[f'bmtpt[{READ_OUT}]']:.0f} with BMTPT, "
            "read out"
        )
    sentence = "; ".join(said) + "."
    return sentence[0].upper() + sentence[1:]


def try_a_text(prompt: Path, execution: Execution) -> None:
    """On a terminal, ask for one text and answer it; then print the command that answers more."""
    if on_terminal():
        text = input("\nAsk something, and the new prompt says what it is about (Enter skips): ").strip()
        if text:
            _answer(prompt, text, execution)
    say("\nNext, try your own text or your own CSV:")
    say(f"  echo '{EXAMPLE_TEXT}' | bmtpt predict --prompt {prompt}")
    say("  bmtpt tasks check my-task.yaml      (a ten-line YAML over a CSV: docs/tasks.md)")


def on_terminal() -> bool:
    """Return whether a person can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _answer(folder: Path, text: str, execution: Execution) -> None:
    from bmtpt.artifacts.saved import Prompt
    from bmtpt.inference.predict import predict
    from bmtpt.inference.rows import as_example
    from bmtpt.tasks import saved_task

    prompt = Prompt.load(folder)
    backbone = load_backbone(prompt.card.backbone.name, execution)
    (answer,) = predict(backbone, prompt, [as_example(text, "the text", saved_task(prompt.card.task_definition))])
    say(f"{answer['label']} (probability {answer['probability']:.2f})")

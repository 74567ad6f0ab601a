"""`bmtpt study`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from bmtpt.cli.completion import among, complete_method, complete_study, complete_task
from bmtpt.cli.console import ERR, doing, say, show_table, show_verdict
from bmtpt.cli.options import (
    Defaults,
    Device,
    Engine,
    Jobs,
    Json,
    MemoryOption,
    Names,
    On,
    PrecisionOption,
    Scale,
    StudyBackbone,
    StudyData,
    StudyFolder,
    StudySources,
    execution_of,
    require_one_of,
)
from bmtpt.types import PresetName

if TYPE_CHECKING:
    from bmtpt.backbone.execution import Execution
    from bmtpt.cli.progress import Expected
    from bmtpt.results import Result
    from bmtpt.studies.spec import StudySpec


def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE", help="A study of bmtpt, or a study's YAML file.", autocompletion=complete_study
        ),
    ],
    out: StudyFolder,
    scale: Scale = None,
    data: StudyData = None,
    backbone: StudyBackbone = None,
    sources: StudySources = None,
    targets: Annotated[
        Names, typer.Option("--target", help="Target task, in place of the file's.", autocompletion=complete_task)
    ] = None,
    shots: Annotated[Names, typer.Option("--shots", help="Training examples, in place of the file's.")] = None,
    seeds: Annotated[Names, typer.Option("--seed", help="In place of the file's.")] = None,
    methods: Annotated[
        Names, typer.Option("--method", help="In place of the file's.", autocompletion=complete_method)
    ] = None,
    tuning: Annotated[
        bool, typer.Option("--tuning", help="Run on the targets that are for tuning settings and are not reported.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="paper: its settings in place of the file's, in every stage.",
            autocompletion=among(get_args(PresetName)),
        ),
    ] = None,
    jobs: Jobs = None,
    on: On = "local",
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    engine: Engine = "auto",
    memory: MemoryOption = "keep",
    as_json: Json = False,
    config: Defaults = None,
) -> None:
    """Run a study: methods × targets × shots × seeds, into result lines, a table and a report."""
    from bmtpt.studies import load_study

    given = {"data": data, "backbone": backbone, "sources": sources, "targets": targets, "methods": methods}
    numbers = {"shots": shots, "seeds": seeds}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value}
    changes |= {key: [_number(value) for value in values] for key, values in numbers.items() if values}
    require_one_of("--preset", preset, PresetName)
    spec = load_study(name, scale, changes)
    spec = spec.as_in_the_paper() if preset == "paper" else spec
    execution = execution_of(device, precision, engine, memory)
    run_and_report(spec.for_tuning() if tuning else spec, out, jobs, execution, on=on, as_json=as_json)


def _number(text: str) -> int | str | None:
    """Read shots, which may be `all`; other words are left to the study's own check."""
    if text in ("all", "none"):
        return None
    return int(text) if text.isdigit() else text


def run_and_report(
    spec: StudySpec,
    out: Path,
    jobs: int | None,
    execution: Execution,
    expected: Expected | None = None,
    on: str = "local",
    as_json: bool = False,
) -> list[Result]:
    """Run a study, print its tables, verdicts and where everything is; return its result lines.

    Args:
        expected: What it should take, if that was measured, for the time left.
        on: Where its jobs run.
        as_json: Print the tables and verdicts as JSON, and nothing else.

    Raises:
        IncompleteStudyError: Jobs failed; what is done is reported nevertheless.
    """
    from bmtpt.artifacts.folder import held, made
    from bmtpt.cli.progress import TrainingProgress
    from bmtpt.report.html import write_report
    from bmtpt.report.lines import by_measure, frame
    from bmtpt.report.statistics import verdict
    from bmtpt.report.tables import score_table
    from bmtpt.studies import run_study
    from bmtpt.studies.run import RESULTS, IncompleteStudyError, default_processes

    processes = jobs or (default_processes() if on == "local" else None)
    incomplete = None
    with made(out), held(out):
        with TrainingProgress(ERR, folder=out, expected=expected) as progress:
            try:
                results = run_study(spec, out, progress, processes=processes, on=on, execution=execution)
            except IncompleteStudyError as error:
                results, incomplete = error.results, error
        if incomplete and not any(row.primary for row in results):
            raise incomplete
        posterior, prompt = _artifacts(spec, out)
        there = {"posterior": posterior, "prompts": prompt.parent}
        shown = [out, *(place for place in (posterior, prompt) if place.is_dir())]
        with doing("drawing the report"):
            report = write_report(shown, out / "report.html")
    for group in by_measure(frame(results)):
        show_table(score_table(group), as_json=as_json)
        show_verdict(verdict(group), group.metric.iloc[0], as_json=as_json)
    written = {"results": out / RESULTS, **there, "report": report}
    for name, place in written.items():
        if place.exists() and not as_json:
            say(f"{name:<11}{place}")
    if incomplete:
        raise incomplete
    return results


def _artifacts(spec: StudySpec, out: Path) -> tuple[Path, Path]:
    """Return where the first seed's posterior and BMTPT prompt are, if the study has such."""
    from bmtpt.studies.run import prompt_folder
    from bmtpt.tasks import load_task

    seed = spec.seeds[0]
    target = load_task(spec.targets[-1]).name
    posterior = out / "sources" / f"seed{spec.source_seed(seed)}" / f"m{spec.learn.particles}"
    return posterior, prompt_folder(out, target, "bmtpt", spec.shots[0], seed)

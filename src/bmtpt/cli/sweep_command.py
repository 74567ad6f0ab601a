"""`bmtpt sweep`."""

from __future__ import annotations

from typing import Annotated

import typer

from bmtpt.cli.completion import complete_method, complete_metric, complete_study, complete_task
from bmtpt.cli.console import ERR, doing, print_json, say, say_next
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
)


def sweep(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME", help="A study's YAML file with a 'sweep', or its name.", autocompletion=complete_study
        ),
    ],
    out: StudyFolder,
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many there should be in the end.")] = 20,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            help="Score, averaged over the tuning targets, shots and seeds.",
            autocompletion=complete_metric,
        ),
    ] = "nll",
    method: Annotated[
        str, typer.Option("--method", help="Whose settings are searched.", autocompletion=complete_method)
    ] = "bmtpt",
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the search: the same one tries the same settings.")
    ] = 0,
    scale: Scale = None,
    data: StudyData = None,
    backbone: StudyBackbone = None,
    sources: StudySources = None,
    tuning: Annotated[
        Names, typer.Option("--target", help="Tuning target, in place of the file's.", autocompletion=complete_task)
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
    """Search settings on a study's tuning targets; the best become config files of learn and adapt."""
    from bmtpt.cli.progress import TrainingProgress
    from bmtpt.report.sweep_page import best_of, write_sweep_page
    from bmtpt.studies import load_study
    from bmtpt.studies.sweep import sweep as run_sweep

    given = {"data": data, "backbone": backbone, "sources": sources, "tuning": tuning}
    spec = load_study(name, scale, {key: value for key, value in given.items() if value})
    execution = execution_of(device, precision, engine, memory)
    with TrainingProgress(ERR, folder=out) as progress:
        found = run_sweep(
            spec, out, progress, trials=trials, metric=metric, method=method, seed=seed, processes=jobs, on=on,
            execution=execution,
        )  # fmt: skip
    with doing("drawing the report"):
        report = write_sweep_page(out / "report.html", spec.name, found, metric)
    best = best_of(found, metric)
    if as_json:
        for trial in found:
            print_json(trial._asdict() | {"score": trial.score, "state": trial.state, "best": trial is best})
        return
    if best:
        settings = ", ".join(f"{option} = {value}" for option, value in best.settings.items())
        say(f"best of {len(found)} trials: trial {best.number}, mean {metric} {best.score:.4g}, {settings}")
    for what, place in {"settings": out / "learn.yaml", "": out / "adapt.yaml", "report": report}.items():
        say(f"{what:<11}{place}")
    sources_given = [word for source in spec.sources for word in ("--source", source)]
    say_next("learn", "--config", out / "learn.yaml", "--backbone", spec.backbone, *sources_given, "--out", "DIR")

"""`bmtpt study` and `bmtpt quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bmtpt.cli.common import ERR, OUT, Defaults, saving_settings, say
from bmtpt.cli.main import app

if TYPE_CHECKING:
    from bmtpt.studies import StudySpec

QUICKSTART = Path(__file__).parent.parent / "studies" / "quickstart.yaml"


@app.command(epilog="Example: bmtpt study studies/fewshot.yaml --data ../shared/data --out runs/fewshot")
def study(
    file: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    out: Annotated[Path, typer.Option("--out", help="Folder; the same command goes on where it was stopped.")],
    data: Annotated[
        str | None, typer.Option("--data", help="hub, offline or a folder, in place of the file's.")
    ] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="In place of the file's.")] = None,
    config: Defaults = None,
) -> None:
    """Run a study: methods × targets × shots × seeds, into result lines, a table and a report."""
    from bmtpt.studies import load_study

    spec = load_study(file)
    changes = {key: value for key, value in {"data": data, "backbone": backbone}.items() if value}
    _run(spec.model_copy(update=changes), out)


@app.command(epilog="Example: bmtpt quickstart --out bmtpt-quickstart")
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder; the same command goes on where it was stopped.")] = Path(
        "bmtpt-quickstart"
    ),
) -> None:
    """Run the whole method on a real T5 and real data, without any hub (under 10 minutes on 2 cores)."""
    from bmtpt.studies import load_study

    spec = load_study(QUICKSTART)
    prompt = _run(spec, out)
    say("\nNext, try your own text or your own CSV:")
    text = '{"premise": "It is raining.", "hypothesis": "The street is wet."}'
    say(f"  echo '{text}' | bmtpt predict --prompt {prompt}")
    say("  bmtpt tasks check my-task.yaml      (a ten-line YAML over a CSV: see README)")


def _run(spec: StudySpec, out: Path) -> Path:
    """Run a study, print its table and what was written; return the folder of one BMTPT prompt."""
    from bmtpt.cli.progress import TrainingProgress
    from bmtpt.report.html import write_report
    from bmtpt.report.tables import score_table, to_rich, verdict
    from bmtpt.studies import run_study
    from bmtpt.studies.run import RESULTS, prompt_folder

    with TrainingProgress(ERR) as progress:
        results = run_study(spec, out, saving_settings(out, spec, progress))
    seed = spec.seeds[0]
    posterior = out / "sources" / f"seed{spec.source_seed(seed)}" / f"m{spec.learn.particles}"
    prompt = prompt_folder(out, results[-1].target, "bmtpt", spec.shots[0], seed)
    with ERR.status("drawing the report"):
        report = write_report(
            [out, *(folder for folder in (posterior, prompt) if folder.is_dir())], out / "report.html"
        )
    OUT.print(to_rich(score_table(results)))
    say(verdict(results))
    say(f"\nresults    {out / RESULTS}\nposterior  {posterior}\nprompts    {out / 'prompts'}\nreport     {report}")
    return prompt

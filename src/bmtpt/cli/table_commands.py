"""`bmtpt table`: result lines as the table and the sentences that documents hold."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bmtpt.cli.completion import complete_method, complete_metric, complete_task
from bmtpt.cli.console import is_terminal, show_table, show_verdict
from bmtpt.cli.options import Json
from bmtpt.report.table import Table, to_markdown


def table(
    files: Annotated[list[Path], typer.Argument(help="Results files (.jsonl).")],
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="The method, or one variant such as 'bmtpt\\[particles=7]', that is compared. "
            "\\[default: bmtpt, or svgd where there are no prompts]",
            autocompletion=complete_method,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help="In place of the headline ones: nll, ece, spread, …; or a cost: seconds, steps, kept_bytes, …",
            autocompletion=complete_metric,
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=1, help="Only the lines with this many training examples.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--target", help="Only the lines of these targets.", autocompletion=complete_task),
    ] = None,
    source_stages: Annotated[
        int | None,
        typer.Option(
            "--source-stages",
            min=1,
            help="Of how many source stages the seeds of older lines, which do not name theirs, took one in turn.",
        ),
    ] = None,
    differences: Annotated[
        bool, typer.Option("--differences/--no-differences", help="With variants, many: leave the differences out.")
    ] = True,
    gains: Annotated[
        bool, typer.Option("--gains", help="Only the differences of --method from every other one, mean over targets.")
    ] = False,
    floors: Annotated[
        list[str] | None,
        typer.Option(
            "--floor",
            help="Only whether --method is on a target more than a standard error under this one.",
            autocompletion=complete_method,
        ),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Show published scores next to these, with what limits the comparison.")
    ] = False,
    markdown: Annotated[
        bool | None,
        typer.Option(
            "--markdown/--text",
            help="Markdown, or what fits the terminal. \\[default: text on a terminal, Markdown elsewhere]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print result lines as tables, with paired differences and a verdict."""
    from bmtpt.errors import ArtifactError, SettingsError
    from bmtpt.report.gains import floor_table, gain_table
    from bmtpt.report.lines import by_measure, frame, of_metric, on_targets, with_shots, with_source_stages
    from bmtpt.report.statistics import contenders, judged_of, pairs_to_compare, verdict
    from bmtpt.report.tables import difference_table, published_table, score_table
    from bmtpt.results import read_results

    if markdown and as_json:
        raise SettingsError("--markdown and --json exclude each other; give one of them")
    results = read_results(files)
    if not results:
        raise ArtifactError(f"{files[0]} holds no result lines yet; name a file of a study that has run")
    lines = frame(results)
    if source_stages:
        lines = with_source_stages(lines, source_stages)
    if shots:
        lines = with_shots(lines, shots)
    if targets:
        lines = on_targets(lines, targets)
    if markdown is None:
        markdown = not (as_json or is_terminal(sys.stdout))
    show = partial(_show, markdown=markdown, as_json=as_json)
    if published:
        show(published_table(by_measure(lines)[0]))
        return
    groups = [of_metric(lines, metric)] if metric else by_measure(lines)
    for group in groups[:1] if gains or floors else groups:
        names = contenders(group)
        judged = method or judged_of(names)
        if gains:
            show(gain_table(group, judged))
        if floors:
            show(floor_table(group, judged, floors))
        if gains or floors:
            continue
        show(score_table(group))
        if markdown:
            print(f"\n{verdict(group, judged)}\n")
        else:
            show_verdict(verdict(group, judged), group.metric.iloc[0], as_json=as_json)
        if differences and (method or pairs_to_compare(names, judged)):
            show(difference_table(group, judged))


def _show(table: Table, *, markdown: bool, as_json: bool) -> None:
    if markdown:
        print(to_markdown(table))
    else:
        show_table(table, as_json=as_json)

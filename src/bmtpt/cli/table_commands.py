"""`bmtpt table`: result lines as the table and the sentences that documents hold."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bmtpt.cli.console import say, show_table, tell
from bmtpt.report.table import Table, to_markdown


def table(
    files: Annotated[list[Path], typer.Argument(help="Results files (.jsonl).")],
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="The method, or one variant such as 'bmtpt\\[particles=7]', that is compared. "
            "\\[default: bmtpt, or svgd where there are no prompts]",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help="In place of the headline ones: nll, ece, spread, …; or a cost: seconds, steps, kept_bytes, …",
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=1, help="Only the lines with this many training examples.")
    ] = None,
    targets: Annotated[list[str] | None, typer.Option("--target", help="Only the lines of these targets.")] = None,
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
        typer.Option("--floor", help="Only whether --method is on a target more than a standard error under this one."),
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
) -> None:
    """Print result lines as tables, with paired differences and a verdict."""
    from bmtpt.errors import ArtifactError
    from bmtpt.report.gains import floor_table, gain_table
    from bmtpt.report.lines import by_measure, frame, of_metric, on_targets, with_shots, with_source_stages
    from bmtpt.report.statistics import contenders, judged_of, pairs_to_compare, verdict
    from bmtpt.report.tables import difference_table, published_table, score_table
    from bmtpt.results import read_results

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
    in_markdown = not sys.stdout.isatty() if markdown is None else markdown
    if published:
        _print(published_table(by_measure(lines)[0]), in_markdown)
        return
    groups = [of_metric(lines, metric)] if metric else by_measure(lines)
    for group in groups[:1] if gains or floors else groups:
        names = contenders(group)
        judged = method or judged_of(names)
        if gains:
            _print(gain_table(group, judged), in_markdown)
        if floors:
            _print(floor_table(group, judged, floors), in_markdown)
        if gains or floors:
            continue
        _print(score_table(group), in_markdown)
        _print(verdict(group, judged), in_markdown)
        if differences and (method or pairs_to_compare(names, judged)):
            _print(difference_table(group, judged), in_markdown)


def _print(what: Table | str, in_markdown: bool) -> None:
    if in_markdown:
        print(to_markdown(what) if isinstance(what, Table) else f"\n{what}\n")
    elif isinstance(what, Table):
        show_table(what)
    else:
        say("")
        tell(what)
        say("")

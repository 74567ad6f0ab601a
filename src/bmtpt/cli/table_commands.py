"""`bmtpt table`: result lines as the table and the sentences that documents hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bmtpt.cli.main import app


@app.command(epilog="Example: bmtpt table studies/results/fewshot.jsonl --method bmtpt")
def table(
    files: Annotated[list[Path], typer.Argument(help="Results files (.jsonl).")],
    method: Annotated[
        str, typer.Option("--method", help="The method that is compared with every other one.")
    ] = "bmtpt",
) -> None:
    """Print result lines as a Markdown table, with paired differences and a verdict."""
    from bmtpt.report.tables import difference_table, score_table, to_markdown, verdict
    from bmtpt.results import read_results

    results = read_results(files)
    print(to_markdown(score_table(results)))
    print("\n" + verdict(results, method) + "\n")
    print(to_markdown(difference_table(results, method)))

"""Fill docs/results.md from result lines, and draw its pictures.

Between the marks under a block of commands stands what its `bmtpt table` lines print. A picture
`plots/results-NAME.svg` shows the headline scores of `studies/results/NAME.jsonl`, and
`plots/results-NAME.MEASURE.svg` a measure.

    python benchmarks/results_page.py
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import bmtpt.cli.table_commands  # noqa: F401 (it registers the command)
from bmtpt.cli.main import app
from bmtpt.report.lines import by_measure, frame
from bmtpt.report.score_plots import score_plot
from bmtpt.report.svg import as_file, style
from bmtpt.results import read_results

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "studies" / "results"
COMMAND = "bmtpt table "
BLOCK = re.compile(r"```sh\n([^`]+)```\n\n<!-- table -->\n.*?<!-- /table -->", re.DOTALL)
"""Commands, and what stands between the marks under them."""
PICTURE = re.compile(r"\(plots/results-([\w-]+)(?:\.(\w+))?\.svg\)")
"""Names a study, and a measure if it is not the headline scores."""


def filled(page: str) -> str:
    """Return the page with every table printed anew."""
    return BLOCK.sub(_with_tables, page)


def _with_tables(block: re.Match[str]) -> str:
    commands = [line for line in block[1].splitlines() if line.startswith(COMMAND)]
    tables = "\n\n".join(map(printed, commands))
    return f"```sh\n{block[1]}```\n\n<!-- table -->\n\n{tables}\n\n<!-- /table -->"


def printed(command: str) -> str:
    """Return what a `bmtpt table` command prints in the project's root, without doubled blank lines."""
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as out:
        app(shlex.split(command, comments=True)[1:], standalone_mode=False)
    return re.sub(r"\n{3,}", "\n\n", out.getvalue()).strip()


def picture(name: str, measure: str = "") -> str:
    """Return the SVG file of a study's headline scores, or of a measure."""
    groups = by_measure(frame(read_results([RESULTS / f"{name}.jsonl"])))
    lines = next(group for group in groups if measure in ("", group.metric.iloc[0]))
    with style():
        return as_file(score_plot(lines))


def picture_path(name: str, measure: str = "") -> Path:
    return PAGE.parent / "plots" / f"results-{name}{'.' * bool(measure)}{measure}.svg"


def main() -> None:
    page = filled(PAGE.read_text(encoding="utf-8"))
    for named in PICTURE.findall(page):
        picture_path(*named).write_text(picture(*named), encoding="utf-8")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

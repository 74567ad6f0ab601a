"""Fill docs/results.md from result lines, and draw its pictures.

Between the marks under a block of commands stands what its `bmtpt table` lines print. A picture
`plots/results-NAME.svg` shows the headline scores of `studies/results/NAME.jsonl`, and
`plots/results-NAME.MEASURE.svg` a measure.

    python benchmarks/results_page.py
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from bmtpt.report.summary import by_measure, summarise
from bmtpt.report.svg import as_file, style
from bmtpt.report.variant_plots import plot_of
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
    """Return the page with every table printed anew.

    Raises:
        subprocess.CalledProcessError: A command fails.
    """
    return BLOCK.sub(_with_tables, page)


def _with_tables(block: re.Match[str]) -> str:
    commands = [line for line in block[1].splitlines() if line.startswith(COMMAND)]
    tables = "\n\n".join(map(printed, commands))
    return f"```sh\n{block[1]}```\n\n<!-- table -->\n\n{tables}\n\n<!-- /table -->"


def printed(command: str) -> str:
    """Return what a `bmtpt table` command prints in the project's root, without doubled blank lines."""
    arguments = [sys.executable, "-m", "bmtpt", *shlex.split(command, comments=True)[1:]]
    run = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return re.sub(r"\n{3,}", "\n\n", run.stdout).strip()


def picture(name: str, measure: str = "") -> str:
    """Return the SVG file of a study's headline scores, or of a measure."""
    groups = by_measure(read_results([RESULTS / f"{name}.jsonl"]))
    cells = summarise(next(group for group in groups if measure in ("", group[0].metric)))
    with style():
        return as_file(plot_of(cells))


def picture_path(name: str, measure: str = "") -> Path:
    return PAGE.parent / "plots" / f"results-{name}{'.' * bool(measure)}{measure}.svg"


def main() -> None:
    page = filled(PAGE.read_text(encoding="utf-8"))
    for named in PICTURE.findall(page):
        picture_path(*named).write_text(picture(*named), encoding="utf-8")
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

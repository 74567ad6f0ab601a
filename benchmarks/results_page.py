"""Fill docs/{results,compare,choosing}.md and docs/results/*.md from result lines, and draw their pictures.

Between the marks under a block of commands goes what its `bmtpt table` lines print. A picture `plots/results-NAME.svg`
shows the headline scores of `studies/results/NAME.jsonl`, `plots/results-NAME.MEASURE.svg` a measure, and
`plots/results-NAME.gains.svg` what the page's `bmtpt table --gains` command compares.

    python benchmarks/results_page.py
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from bmtpt.cli import app
from bmtpt.report.gain_plot import gain_plot
from bmtpt.report.lines import by_measure, frame, of_metric, with_shots, with_source_stages
from bmtpt.report.names import display_name, display_names, figure
from bmtpt.report.score_plots import score_plot
from bmtpt.report.statistics import over_targets, paired, together
from bmtpt.report.svg import as_file, style
from bmtpt.report.table import Table, to_markdown
from bmtpt.report.tables import interval_text, mean_and_error
from bmtpt.results import read_results
from bmtpt.stages.headroom import Answerer, Headroom

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "studies" / "results"
COMMAND = "bmtpt table "
BLOCK = re.compile(r"```sh\n([^`]+)```\n\n<!-- table -->\n.*?<!-- /table -->", re.DOTALL)
"""Commands, and what is between the marks under them."""
NO_LINES = "Being computed."
OWN_BLOCK = re.compile(
    r"<!-- (never moved|particle starts|headroom|gains|comparison|laplace) -->\n.*?<!-- /\1 -->", re.DOTALL
)
"""Tables of this script."""
PICTURE = re.compile(r"plots/results-([\w-]+)(?:\.(\w+))?\.svg\)")
"""Names a study, and a measure if it is not the headline scores."""
COMPARED = (
    "zero_shot",
    "tfidf_logreg",
    "encoder_logreg",
    "sentence_logreg",
    "setfit",
    "bmtpt[steps=0,readout=linear,readout_prior=posterior,unlabelled_rows=64,average=starts]",
    "pt",
    "pt[readout=linear,unlabelled_rows=64,predictive=laplace]",
    "bmtpt[readout=linear,unlabelled_rows=64,predictive=laplace]",
    "attempt[readout=linear,unlabelled_rows=64,predictive=laplace]",
    "lora",
)
"""What a user would take, among the methods and variants of few-labels."""
READ_OUT = ("pt", "spot", "attempt", "mpt", "bmtpt")
"""Methods whose prompts few-labels reads in several ways."""
COSTS = {
    "kept_bytes": ("bytes a task", 1),
    "seconds": ("seconds to fit, 16 labels", 1),
    "predict_seconds": ("ms an answer", 1000),
}
"""What a task costs: the lines' field, its heading, and the factor to the heading's unit."""
FIRST_STOP = 30  # two checks, 15 steps apart, without a better loss (paper-fewshot.yaml)


def pages() -> list[Path]:
    """Return the answer page, the pages that advise by it, and the page of each study."""
    return [
        *(DOCS / f"{name}.md" for name in ("results", "compare", "choosing")),
        *sorted((DOCS / "results").glob("*.md")),
    ]


def filled(page: str) -> str:
    """Return a page with every table printed anew."""
    made = {
        "never moved": never_moved,
        "particle starts": particle_starts,
        "headroom": headroom,
        "gains": gains,
        "comparison": comparison,
        "laplace": laplace,
    }
    page = BLOCK.sub(_with_tables, page)
    return OWN_BLOCK.sub(lambda block: f"<!-- {block[1]} -->\n\n{made[block[1]]()}\n<!-- /{block[1]} -->", page)


def _with_tables(block: re.Match[str]) -> str:
    commands = [line for line in block[1].splitlines() if line.startswith(COMMAND)]
    tables = "\n\n".join(map(printed, commands))
    return f"```sh\n{block[1]}```\n\n<!-- table -->\n\n{tables}\n\n<!-- /table -->"


def printed(command: str) -> str:
    """Return what a `bmtpt table` command prints in the project's root, without doubled blank lines.

    A page may be there before its lines, with the rules of a study that is still running.
    """
    words = shlex.split(command, comments=True)
    if not all((ROOT / word).is_file() for word in words if word.endswith(".jsonl")):
        return NO_LINES
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as out:
        app(words[1:], standalone_mode=False)
    return re.sub(r"\n{3,}", "\n\n", out.getvalue()).strip()


def never_moved() -> str:
    """Return the table of the runs of paper-fewshot that stopped at the first possible step, by method and rows."""
    steps = of_metric(frame(read_results(RESULTS / "paper-fewshot.jsonl")), "steps")
    steps = steps[steps.target != "sources"].assign(stopped=lambda runs: runs.value == FIRST_STOP)
    runs = steps.groupby(["method", "shots"])["stopped"].agg(["sum", "size"]).astype(str).agg(" of ".join, axis=1)
    names = {name: shown for name, shown in display_names().items() if name in set(steps.method)}
    table: pd.DataFrame = runs.unstack("shots").loc[[*names]].rename(index=names)
    header = ("runs that kept their start", *(f"{shots:.0f} training rows" for shots in table.columns))
    return to_markdown(Table(header, tuple(table.itertuples(name=None))))


def particle_starts() -> str:
    """Return the table of `benchmarks/particle_init.py`: losses averaged over sources and particles."""
    lines = (RESULTS / "particle_init.jsonl").read_text(encoding="utf-8").splitlines()
    rows = []
    for line in map(json.loads, lines):
        own, mean = (np.mean(list(line[key].values())) for key in ("particle_nll", "mean_nll"))
        start, jitter = line["particle_init"], line.get("init_jitter", "–")
        gap = f"{mean - own:+.3f}".replace("-", "−")
        rows.append(
            (start, f"{jitter}", f"{line['steps']}", f"{line['seconds']:.0f}", f"{own:.2f}", f"{mean:.2f}", gap)
        )
    header = (
        "start of the particles",
        "jitter",
        "steps",
        "seconds",
        "NLL of the particles",
        "NLL of their mean",
        "gap",
    )
    return to_markdown(Table(header, tuple(rows)))


def headroom() -> str:
    """Return the table of the `bmtpt headroom --json` lines of the targets of few-labels."""
    lines = pd.read_json(RESULTS / "few-labels-headroom.jsonl", lines=True)
    rows = []
    for task, own in lines.groupby("task", sort=False):
        ways = [Answerer(*way) for way in own[["name", "labels", "accuracy", "nll"]].itertuples(index=False)]
        found = Headroom(ways, own.test_rows.iloc[0], few=16)
        linear = [f"{way.accuracy:.1f}" for way in ways if way.name == "offset and linear"]
        start = (task, str(found.test_rows), *(f"{way.accuracy:.1f}" for way in ways[:2]), *linear)
        rows.append((*start, str(ways[-1].labels), f"{found.noise:.1f}", "yes" if found.labels_help else "no"))
    readouts = ("4 labels", "16 labels", "64 labels", "all labels")
    header = ("target", "test rows", "constant", "untrained", *readouts, "of", "two standard errors", "labels help")
    return to_markdown(Table(header, tuple(rows)))


def comparison() -> str:
    """Return the table of what each tool gets and costs with few labels: means over the targets of few-labels."""
    lines = frame(read_results(RESULTS / "few-labels.jsonl"))
    columns: dict[str, Iterable[str]] = {}
    for metric, shown in {"accuracy": "accuracy", "nll": "NLL"}.items():
        for shots in (4, 16):
            found = over_targets(of_metric(with_shots(lines, shots), metric)).loc[[*COMPARED]]
            columns[f"{shown}, {shots} labels"] = [mean_and_error(*each, metric) for each in found.to_numpy()]
    many = with_shots(lines, 16)
    for cost, (shown, unit) in COSTS.items():
        found = of_metric(many, cost).groupby("contender")["value"].mean().loc[[*COMPARED]]
        columns[shown] = [figure(unit * value, cost) for value in found]
    rows = zip(map(display_name, COMPARED), *columns.values(), strict=True)
    return to_markdown(Table(("method", *columns), tuple(rows)))


def laplace() -> str:
    """Return the table of what the mean over the readout's posterior changes in few-labels, by method."""
    lines = frame(read_results(RESULTS / "few-labels.jsonl"))
    rows = []
    for method in READ_OUT:
        at_map = f"{method}[readout=linear,unlabelled_rows=64]"
        row = [display_name(method)]
        for metric, shots in product(("nll", "ece"), (4, 16)):
            own = of_metric(with_shots(lines, shots), metric)
            row.append(interval_text(together(paired(own, f"{at_map[:-1]},predictive=laplace]", at_map)), metric))
        rows.append(tuple(row))
    header = ("method", "NLL, 4 labels", "NLL, 16 labels", "ECE, 4 labels", "ECE, 16 labels")
    return to_markdown(Table(header, tuple(rows)))


def gains() -> str:
    """Return the link to the figure of few-labels, if its lines are there."""
    if not (RESULTS / "few-labels.jsonl").is_file():
        return NO_LINES + "\n"
    return "![One method minus each other one, with 95 % intervals](plots/results-few-labels.gains.svg)\n"


def picture(name: str, measure: str = "") -> str:
    """Return the SVG file of a study's headline scores, of a measure, or of a method's differences from all others."""
    lines = frame(read_results([RESULTS / f"{name}.jsonl"]))
    if stages := source_stages(name):
        lines = with_source_stages(lines, stages)
    groups = by_measure(lines)
    with style():
        if measure == "gains":
            return as_file(gain_plot([groups[0], of_metric(lines, "nll")], said(name, "--gains --method '([^']+)'")))
        return as_file(score_plot(next(group for group in groups if measure in ("", group.metric.iloc[0]))).svg)


def source_stages(name: str) -> int | None:
    """Return what the commands of a study's page give as --source-stages; its picture is drawn in the same way."""
    found = said(name, rf"--source-stages (\d+) .*results/{name}\.jsonl")
    return int(found) if found else None


def said(name: str, pattern: str) -> str | None:
    """Return what the commands of a study's page say, or None if they do not say it."""
    page = DOCS / "results" / f"{name}.md"
    found = re.search(pattern, page.read_text(encoding="utf-8") if page.is_file() else "")
    return found[1] if found else None


def picture_path(name: str, measure: str = "") -> Path:
    """Return where a picture lies."""
    return DOCS / "plots" / f"results-{name}{'.' * bool(measure)}{measure}.svg"


def main() -> None:
    """Fill the pages and draw their pictures, and the README's."""
    for path in [*pages(), ROOT / "README.md"]:
        page = filled(path.read_text(encoding="utf-8"))
        for named in PICTURE.findall(page):
            picture_path(*named).write_text(picture(*named), encoding="utf-8")
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

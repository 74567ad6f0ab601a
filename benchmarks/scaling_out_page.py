"""The tables of docs/scaling.md and its picture, from the lines of `scaling_out.py`: the same lines, the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmtpt.report.svg import as_file, colour, panels, style, to_svg
from result_tables import NOT_MEASURED, fill, machines, table
from scaling_model import ASSUMED, GPU, WORLDS, Work, best, fitted, pays_up_to, predicted, shares

Line = Mapping[str, Any]
PREDICTED = (
    Work("t5-base", 5, 6, 1),
    Work("t5-base", 5, 6, 32),
    Work("t5-base", 20, 64, 8),
    Work("t5-3b", 5, 6, 32),
    Work("t5-3b", 20, 64, 8),
)
SHOWN = (1, 8, 64, 256, 1024)
SPREAD = (2, 4, 8, 16)
RANKS = (1, 2, 3, 4)


def write_page(lines: Sequence[Line], docs: Path) -> int:
    page = docs / "scaling.md"
    page.write_text(fill(page.read_text(encoding="utf-8"), blocks(lines)), encoding="utf-8")
    (docs / "plots" / "scaling-out.svg").write_text(picture(lines), encoding="utf-8")
    return 0


def blocks(lines: Sequence[Line]) -> dict[str, str]:
    """Return every table of the page by name."""
    return {
        "measured": measured_table(lines),
        "predicted": predicted_table(),
        "assumed": table(["of a machine", "assumed", "source"], ASSUMED),
        "spread": spread_table(),
    }


def by_work(lines: Sequence[Line]) -> dict[Work, dict[int, Line]]:
    """Return the last line of each number of ranks, by the step that was taken."""
    found: dict[Work, dict[int, Line]] = {}
    for line in lines:
        found.setdefault(Work(**line["work"]), {})[line["ranks"]] = line
    return found


def measured_table(lines: Sequence[Line]) -> str:
    """Measured and predicted times of a step against those of one process."""
    if not lines:
        return NOT_MEASURED
    rows = []
    for work, own in by_work(lines).items():
        here, alone = fitted(list(own.values())), own[1]
        one = predicted(work, here, 1, alone["token_budget"]).seconds
        for ranks, line in own.items():
            guess = one / predicted(work, here, ranks, line["token_budget"]).seconds
            rows.append(
                [
                    _named(work),
                    str(ranks),
                    f"{line['most_passes']}",
                    f"{line['cpu_seconds']:.3g}",
                    f"{1e3 * line['exchange']:.2g}",
                    f"{alone['cpu_seconds'] / line['cpu_seconds']:.2f}",
                    f"{guess:.2f}",
                    f"{alone['seconds'] / line['seconds']:.2f}",
                ]
            )
    head = ["step", "ranks", "passes of the busiest", "its CPU s", "exchange, ms", "times as fast, by CPU s"]
    body = table([*head, "predicted", "by the clock"], rows)
    loads = ", ".join(dict.fromkeys(f"{line['load_before']:.1f}" for line in lines))
    return f"{body}\n\n{machines(lines)} Load of the machine before each: {loads}."


def predicted_table() -> str:
    """A step's predicted time on many GPUs, each with the token budget that suits it best."""
    rows = []
    for work in PREDICTED:
        steps = {ranks: best(work, GPU, ranks) for ranks in SHOWN}
        alone = steps[1][1].seconds
        cells = [f"{1e3 * step.seconds:,.0f} ms ({alone / step.seconds:,.1f} ×)" for _, step in steps.values()]
        most = pays_up_to(work, GPU)
        budget = GPU.factor * best(work, GPU, most)[0]
        rows.append([_named(work), *cells, f"{most:,} ({budget:,} tokens a pass)"])
    return table(["step", *(f"{ranks:,} GPU{'s' * (ranks > 1)}" for ranks in SHOWN), "worth having"], rows)


def spread_table() -> str:
    """What is left of a perfect speed-up when a step is spread in one way."""
    work = Work("t5-base", 5, 6, 4)
    found = {ranks: shares(work, ranks, 1024) for ranks in SPREAD}
    rows = [[name, *(f"{100 * found[ranks][name]:.0f} %" for ranks in SPREAD)] for name in found[SPREAD[0]]]
    return table(["spread first", *(f"{ranks} ranks" for ranks in SPREAD)], rows)


def picture(lines: Sequence[Line]) -> str:
    """Speed-ups: predicted and measured here, and predicted on GPUs."""
    with style():
        figure, (here, there) = panels(2, (3.4, 2.6), columns=2)
        for index, (work, own) in enumerate(by_work(lines).items()):
            made, alone = fitted(list(own.values())), own[1]
            one = predicted(work, made, 1, alone["token_budget"]).seconds
            curve = [one / predicted(work, made, ranks, alone["token_budget"]).seconds for ranks in RANKS]
            here.plot(RANKS, curve, "-", color=colour(index), label=f"{work.size}, predicted")
            points = [alone["cpu_seconds"] / own[ranks]["cpu_seconds"] for ranks in own]
            here.plot(list(own), points, "o", color=colour(index), label=f"{work.size}, measured")
        for index, work in enumerate(PREDICTED):
            steps = [best(work, GPU, ranks)[1].seconds for ranks in WORLDS]
            label = _named(work)
            there.plot(WORLDS, [steps[0] / seconds for seconds in steps], "-", color=colour(index), label=label)
        there.plot(WORLDS, WORLDS, ":", color=colour(5), label="perfect")
        here.set(xlabel="ranks", ylabel="times as fast as one", title="CPU, measured and predicted", xticks=RANKS)
        there.set(xlabel="GPUs", title="GPUs, predicted from assumptions", xscale="log", yscale="log")
        for axis in (here, there) if lines else (there,):
            axis.legend(fontsize=6)
        return as_file(to_svg(figure, "How many times as fast a step is on many ranks"))


def _named(work: Work) -> str:
    return f"{work.size}, M={work.M}, K={work.K}, B={work.B}"

"""Draw the committed result lines, and print the tables that docs/performance.md holds.

    python benchmarks/plot.py            # draws docs/plots/*.svg
    python benchmarks/plot.py --tables   # prints the tables
    python benchmarks/plot.py --fill     # draws, and puts the tables into docs/performance.md

What has no result file is "not measured". The same lines give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from baselines import NAMES
from bmtpt.report.svg import as_file, colour, panels, style, to_svg
from result_tables import (
    DEVICES,
    Line,
    blocks,
    fill,
    occasion,
    plot_path,
    predict_lines,
    read_lines,
    scaling_lines,
    step_lines,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
SMALL = {"axes.titlesize": 9, "font.size": 8, "axes.grid": False}
SHORT = {"loop_unfrozen": "(a) loop, unfrozen", "loop_frozen": "(b) loop, frozen", "peft": "(c) PEFT loop"}
SHORT |= {"batched": "(d) batched, SDPA", "generic": "generic", "packed": "packed"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    lines = read_lines(options.results)
    made = blocks(lines)
    if options.tables:
        print("\n\n".join(f"<!-- {name} -->\n{text}\n<!-- end {name} -->" for name, text in made.items()))
        return 0
    for path, svg in plots(lines):
        target = options.docs / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(svg, encoding="utf-8")
        print(target)
    if options.fill:
        page = options.docs / "performance.md"
        page.write_text(fill(page.read_text(encoding="utf-8"), made), encoding="utf-8")
        print(page)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options.add_argument("--docs", type=Path, default=ROOT / "docs")
    options.add_argument("--tables", action="store_true", help="print the tables and draw nothing")
    options.add_argument("--fill", action="store_true", help="also put the tables into performance.md")
    return options.parse_args(arguments)


def plots(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Yield path below docs/ and SVG of every plot that there are lines for."""
    import matplotlib

    with style(), matplotlib.rc_context(SMALL):
        for device in DEVICES:
            if own := step_lines(lines, device):
                yield plot_path("step", device), as_file(to_svg(step_plot(own), "Time of a step"))
            if own := scaling_lines(lines, device):
                yield plot_path("scaling", device), as_file(to_svg(scaling_plot(own), "Time and memory of a step"))
        if own := predict_lines(lines):
            yield plot_path("predict"), as_file(to_svg(predict_plot(own), "Rows per second"))


def step_plot(lines: Sequence[Line]) -> Figure:
    """One panel per case: how many times as long as ours each variant takes."""
    figure, axes = panels(len(lines), (3.4, 1.9))
    for axis, line in zip(axes, lines, strict=True):
        names = [name for name in NAMES if name in line["ratio"]]
        _bars(axis, [SHORT[name] for name in names], [line["ratio"][name] for name in names], "{:.1f}")
        for bar, name in zip(axis.patches, names, strict=True):
            bar.set_color(colour(list(NAMES).index(name)))
        axis.set_title(f"{line['size']}, B = {line['B']}, {line['precision']}\n{occasion(line)}")
        axis.set_xlabel("time of a step, engine=packed = 1")
    return figure


def scaling_plot(lines: Sequence[Line]) -> Figure:
    """Seconds above, memory below, a column per axis; one line per shape."""
    axes_names = list(dict.fromkeys(line["axis"] for line in lines))
    figure, axes = panels(2 * len(axes_names), (2.2, 1.9), columns=len(axes_names))
    sizes = list(dict.fromkeys((line["size"], line["precision"]) for line in lines))
    for column, name in enumerate(axes_names):
        upper, lower = axes[column], axes[column + len(axes_names)]
        for index, size in enumerate(sizes):
            own = [line for line in lines if line["axis"] == name and (line["size"], line["precision"]) == size]
            _curve(upper, own, [line["seconds"] for line in own], ", ".join(size), index)
            _curve(lower, own, [(line["peak_bytes"] or 0) / 2**20 for line in own], ", ".join(size), index)
        lower.set_xlabel(name)
        for axis in (upper, lower):
            axis.set(xlim=(0, None), ylim=(0, None))
    axes[0].set_ylabel("s a step")
    axes[0].legend()
    axes[len(axes_names)].set_ylabel("MiB")
    return figure


def _curve(axis: Axes, lines: Sequence[Line], values: Sequence[float], label: str, index: int) -> None:
    axis.plot([line[line["axis"]] for line in lines], values, "o-", color=colour(index), label=label, markersize=3)


def predict_plot(lines: Sequence[Line]) -> Figure:
    """One panel per case: rows per second of each way to predict."""
    figure, axes = panels(len(lines), (3.4, 1.6))
    for axis, line in zip(axes, lines, strict=True):
        _bars(axis, list(line["rows_per_second"]), list(line["rows_per_second"].values()), "{:.3g}")
        axis.set_title(f"{line['case']}, {line['tasks']} tasks, {line['batch_rows']} rows, {line['precision']}")
        axis.set_xlabel("rows per second")
    return figure


def _bars(axis: Axes, names: Sequence[str], values: Sequence[float], form: str) -> None:
    bars = axis.barh(range(len(names)), values, color=colour(0))
    axis.bar_label(bars, [form.format(value) for value in values], padding=2)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.15)


if __name__ == "__main__":
    raise SystemExit(main())

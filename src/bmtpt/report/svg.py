"""Matplotlib figures as inline SVG: the same bytes for the same data, readable on light and dark pages.

Ink is drawn in a marker colour that becomes CSS `currentColor`; text stays text, so the page's font and colour apply
and a reader can search it. Anything that would reach out of the page (DTD, RDF metadata) is cut off.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
# Okabe and Ito's colours, which colour-blind readers can tell apart, without the black and the yellow and with a
# lighter blue, so that all are visible on white and on black.
COLOURS = ("#1f83c4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
COLUMNS = 3
PANEL = (3.1, 2.5)  # inches
_STYLE: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "bmtpt",
    "text.color": INK,
    "text.parse_math": False,  # a task may be called "$x"
    "xtick.color": INK,
    "xtick.major.size": 0,  # the grid marks the places, and a mark each is half of the file
    "ytick.color": INK,
    "ytick.major.size": 0,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw figures in the report's style; both drawing and `to_svg` belong inside."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that matplotlib's own font lacks is drawn by the browser's font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def to_svg(figure: Figure, label: str) -> str:
    """Return a figure as an `<svg>` element with an accessible name and no reference to anything outside."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # HTML's parser knows SVG's names already
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # "axes_1" in every figure would be a repeated id
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)  # hundredths of a point
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("> <", ">\n<")  # one element a line
    svg = _without_bare_groups(svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def _without_bare_groups(svg: str) -> str:
    """Drop the `<g>` elements without an attribute, which are half of the lines and change nothing."""
    kept, bare = [], []
    for line in svg.splitlines():
        if line.startswith("<g") and not line.endswith("/>"):
            bare.append(line == "<g>")
        drop = bare.pop() if line == "</g>" else line in ("<g>", "<g/>")
        if not drop:
            kept.append(line)
    return "\n".join(kept)


def as_file(svg: str) -> str:
    """Return an element of `to_svg` as the text of an SVG file: dark ink on white, because no page sets the colours."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return svg.replace("currentColor", "#1b1f24").replace("<svg ", f'<svg {names} style="background: #ffffff" ', 1)


def colour(index: int) -> str:
    """Return the colour of the index-th series."""
    return COLOURS[index % len(COLOURS)]


def short(name: str, length: int = 26) -> str:
    """Return a name cut to fit into a plot."""
    return name if len(name) <= length else name[: length - 1] + "…"


def panels(count: int, size: tuple[float, float] = PANEL, columns: int = COLUMNS) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` axes in rows of at most `columns`."""
    from matplotlib.figure import Figure

    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(size[0] * columns + 0.3, size[1] * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def legend(figure: Figure, axes: Sequence[Axes], columns: int = 6) -> None:
    """Add one legend for all panels, each name once."""
    entries = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    if entries:
        columns = min(columns, len(entries))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def logarithmic(axis: Axes, values: Sequence[float], ratio: float = 30.0) -> None:
    """Make the y axis logarithmic if all values are positive and span more than `ratio`."""
    values = [value for value in values if math.isfinite(value)]
    if not values or min(values) <= 0 or max(values) <= ratio * min(values):
        return
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())

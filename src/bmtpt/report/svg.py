"""Matplotlib figures as inline SVG: the same bytes for the same data, readable on light and dark pages.

Ink is drawn in a marker colour that becomes CSS `currentColor`; texts stay texts, so the page's font and colour apply
and a reader can search them. Anything that would reach out of the page (DTD, RDF metadata) is cut off.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#010203"
# Okabe and Ito's colours, told apart by colour-blind eyes, without the black and the yellow and with a lighter blue,
# so that all are visible on white and on black.
COLOURS = ("#1f83c4", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
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
    "ytick.color": INK,
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
    from html import escape

    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def to_svg_file(figure: Figure, label: str) -> str:
    """Return a figure as the text of an SVG file of its own."""
    return as_file(to_svg(figure, label))


def as_file(svg: str) -> str:
    """Return an element of `to_svg` as a file's text: dark ink on white, which outside a page nobody sets."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return svg.replace("currentColor", "#1b1f24").replace("<svg ", f'<svg {names} style="background: #ffffff" ', 1)


def colour(index: int) -> str:
    """Return the colour of the index-th series."""
    return COLOURS[index % len(COLOURS)]


def short(name: str, length: int = 26) -> str:
    """Return a name cut to fit into a plot."""
    return name if len(name) <= length else name[: length - 1] + "…"

"""Figures as SVG that lies in an HTML page: small, without addresses, in the page's colours."""

import html
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Each stands for a colour that the page sets for light and for dark.
INK, SOFT, GRID, DOT = "#1b1d1f", "#5d646b", "#e4e4df", "#8b939b"
WIN, HOMEWORK, BAD = "#0a6e6e", "#b8590b", "#a3324b"
VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    GRID: "--line",
    DOT: "--dot",
    WIN: "--win",
    HOMEWORK: "--homework",
    BAD: "--bad",
}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "svg.fonttype": "none",
}

MARKS = r'(<g clip-path="[^"]*")>((?:<use [^>]*style="([^"]*)"/>)+)</g>'  # of a line, in the SVG


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of so many inches, and its axes."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def set_log(axes: Axes) -> None:
    """Let the horizontal axis grow by factors, with plain numbers at it."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """Return a number in few characters: 300k, 1M, 0.001."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def add_legend(figure: Figure) -> None:
    """Say below a figure what its marks mean."""
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def draw_dots(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str = DOT) -> None:
    """Draw dots as one path, of 12 bytes a dot where a marker takes 100: a segment without length
    and with round ends is a dot.
    """
    vertices = [(across, up) for across, up in zip(x, y, strict=True) for _ in range(2)]
    if vertices:
        path = Path(vertices, [Path.MOVETO, Path.LINETO] * len(x))
        path.should_simplify = False  # of many, matplotlib drops segments without length
        axes.add_patch(
            PathPatch(path, edgecolor=colour, facecolor="none", linewidth=5, alpha=0.7,
                      capstyle="round")
        )  # fmt: skip
        axes.autoscale_view()


def to_svg(figure: Figure, name: str, alternative: str) -> str:
    """Return a figure as an element of a page, with a text for those who do not see it.

    The name keeps its ids apart from those of the page's other figures.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a browser has others
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    (box,) = re.findall(r'<svg[^>]* viewBox="([^"]*)"', text)
    _, _, inside = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", text,
                          flags=re.DOTALL).partition("<svg")  # fmt: skip
    inside = re.sub(r"\s+", " ", inside.partition(">")[2])
    inside = re.sub(r"<[^>]+>", lambda tag: _compact(tag[0]), inside).replace("> <", "><")
    inside = re.sub(r"<defs></defs>|<(defs|g) ?/>", "", inside)
    inside = re.sub(MARKS, _share_style, inside)
    for colour, variable in VARIABLES.items():
        inside = inside.replace(colour, f"var({variable})")
    return f'<svg viewBox="{box}" role="img" aria-label="{html.escape(alternative)}">{inside}'


def _share_style(group: re.Match[str]) -> str:
    """Return a line's marks with their common style written once."""
    style = f' style="{group[3]}"'
    return f"{group[1]}{style}>{group[2].replace(style, '')}</g>"


def _compact(tag: str) -> str:
    """Return a tag with numbers of one decimal, the page's font, and nothing that is not needed."""
    tag = re.sub(r"-?\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", tag)
    tag = re.sub(r"(?<![\w.])(-?\d+)\.0(?!\d)", r"\1", tag)
    tag = re.sub(r"; font-family: [^;\"]*| transform=\"rotate\(-0 [^\"]*\"", "", tag)
    tag = tag.replace("xlink:href", "href").replace(": ", ":").replace("; ", ";")
    tag = re.sub(r' id="(?![pm][0-9a-f]{10}")[^"]*"', "", tag)
    tag = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r" ?([MLCQz]|$) ?", r"\1", path[0]), tag)
    return re.sub(r"M([-\d.]+ [-\d.]+)L\1(?=[M\"])", r"M\1h0", tag)

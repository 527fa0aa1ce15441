"""What the figures of a report share: their looks, and how methods are drawn.

Colours are names of variables of report.css, so that dark mode is defined in one place.
"""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from promptprior.report.results import Grid
from promptprior.report.section import format_number
from promptprior.report.statistics import Interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "pentagon", "hexagon")
COLOURS = 8  # --m0 to --m7 of report.css
LONGEST_NAME = 40
AXIS = {"gridcolor": "var(--line)", "linecolor": "var(--line)", "zeroline": False, "automargin": True}
LAYOUT = {
    "autosize": True,
    "dragmode": "zoom",
    "hovermode": "closest",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"color": "var(--ink)", "size": 13},
    "margin": {"l": 8, "r": 20, "t": 12, "b": 40},
    "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemwidth": 30},
    "hoverlabel": {"bgcolor": "var(--raised)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
    "annotationdefaults": {"showarrow": False, "font": {"color": "var(--muted)"}},
    "xaxis": AXIS,
    "yaxis": AXIS,
}  # of all figures: the page holds it once, as plotly's template


class MethodStyle(NamedTuple):
    """How a method is drawn: its colour and symbol, its name escaped, and the same cut to a label."""

    colour: str
    symbol: str
    name: str
    label: str


def method_style(grid: Grid, method: str) -> MethodStyle:
    """How a method is drawn; the baseline's colour and symbol are its own."""
    names = escaped(method), plot_label(method)
    if method == grid.baseline:
        return MethodStyle("var(--m-base)", "circle-open", *names)
    place = [m for m in grid.methods if m != grid.baseline].index(method)
    return MethodStyle(f"var(--m{place % COLOURS})", SYMBOLS[place % len(SYMBOLS)], *names)


def plot_label(name: str) -> str:
    """A name as it stands in a plot: escaped, and cut where it is long."""
    return escaped(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 2]}…")


def escaped(text: str) -> str:
    """A text without the tags that plotly would read in it."""
    return html.escape(text, quote=False)


def interval_trace(
    style: MethodStyle, intervals: Mapping[str, Interval], axis: Literal["x", "y"] = "y"
) -> dict[str, Any]:
    """What traces of a method's intervals share: estimates and bars along an axis, and what hovering tells of each.

    The keys of `intervals` head the hover texts, which give mean, ends and number of runs. One run has no bar.
    """
    texts, above, below = [], [], []
    for head, i in intervals.items():
        ends = " (one run)"
        if i.low is not None:
            ends = f" [{format_number(i.low, 'score')}, {format_number(i.high, 'score')}], {i.n} runs"
        texts.append(f"{head}<br>{style.name}<br>{format_number(i.estimate, 'score')}{ends}")
        above.append(0.0 if i.high is None else i.high - i.estimate)
        below.append(0.0 if i.low is None else i.estimate - i.low)
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": style.colour,
            "thickness": 1.5, "width": 0}  # fmt: skip
    estimates = [i.estimate for i in intervals.values()]
    return {axis: estimates, f"error_{axis}": bars, "text": texts, "hoverinfo": "text", "name": style.label}


def heatmap(
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    limits: tuple[float, float],
    joint: str,
) -> "Figure":
    """A table of numbers as colours: white at 0, the other colours at both limits.

    Hovering tells the number and its place, row and column with `joint` between them.
    """
    from plotly.graph_objects import Figure

    low, high = limits
    scale: list[list[Any]] = [[0, "var(--paper)"], [1, "var(--m0)"]]
    if low < 0:
        scale = [[0, "var(--worse)"], [-low / (high - low), "var(--paper)"], [1, "var(--m0)"]]
    gap = 1 if len(columns) <= 60 else 0
    hover = []
    for row, of_row in zip(rows, values, strict=True):
        numbers = [format_number(value, "score") for value in of_row]
        hover.append([f"{escaped(row)}{joint}{escaped(c)}<br>{n}" for c, n in zip(columns, numbers, strict=True)])
    trace = {
        "type": "heatmap", "x": [plot_label(c) for c in columns], "y": [plot_label(r) for r in rows], "z": values,
        "zmin": low, "zmax": high, "colorscale": scale, "xgap": gap, "ygap": 1, "hoverinfo": "text", "text": hover,
        "colorbar": {"thickness": 12, "outlinewidth": 0, "len": 1},
    }  # fmt: skip
    axis = {"showgrid": False, "type": "category", "fixedrange": True}
    return Figure(trace, {"xaxis": axis, "yaxis": axis | {"autorange": "reversed"}})

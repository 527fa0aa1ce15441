"""What the figures of a report share: their looks, and how methods are drawn.

Colours are names of variables of report.css, so that dark mode is defined in one place.
"""

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from promptprior.report.results import Grid
from promptprior.report.section import format_number
from promptprior.report.statistics import Interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "pentagon", "hexagon")
COLOURS = 8  # --m0 to --m7 of report.css
LONGEST_NAME = 40


def figure_template() -> dict[str, Any]:
    """The layout that all figures share, as plotly's template."""
    from plotly.graph_objects import layout as plotly_layout

    axis = {"gridcolor": "var(--line)", "linecolor": "var(--line)", "zeroline": False, "automargin": True}
    layout = {
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
        "xaxis": axis,
        "yaxis": axis,
    }
    return plotly_layout.Template(layout=layout).to_plotly_json()


def method_style(grid: Grid, method: str) -> tuple[str, str]:
    """Colour and symbol of a method; the baseline's are its own."""
    if method == grid.baseline:
        return "var(--m-base)", "circle-open"
    place = [m for m in grid.methods if m != grid.baseline].index(method)
    return f"var(--m{place % COLOURS})", SYMBOLS[place % len(SYMBOLS)]


def plot_label(name: str) -> str:
    """A name as it stands in a plot: escaped, and cut where it is long."""
    return escaped(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 2]}…")


def escaped(text: str) -> str:
    """A text without the tags that plotly would read in it."""
    return html.escape(text, quote=False)


def hover_interval(method: str, i: Interval) -> str:
    """A method with its mean, interval and number of runs."""
    ends = (
        " (one run)"
        if i.low is None
        else f" [{format_number(i.low, 'score')}, {format_number(i.high, 'score')}], {i.n} runs"
    )
    return f"{escaped(method)}<br>{format_number(i.estimate, 'score')}{ends}"


def error_bars(intervals: Iterable[Interval], colour: str) -> dict[str, Any]:
    """The bars of some intervals; of one run there is none."""
    ends = [
        (0.0, 0.0) if i.low is None or i.high is None else (i.high - i.estimate, i.estimate - i.low) for i in intervals
    ]
    above, below = [up for up, _ in ends], [down for _, down in ends]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour, "thickness": 1.5,
            "width": 0}  # fmt: skip


def empty_figure(text: str) -> "Figure":
    """A figure that says why there is nothing to draw."""
    from plotly.graph_objects import Figure

    layout = {"height": 240, "annotations": [{"text": text, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}]}
    return Figure([{"type": "scatter", "x": [], "y": []}], layout)


def heatmap(
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float | None]],
    hover: Sequence[Sequence[str]],
    limits: tuple[float, float],
) -> "Figure":
    """A table of numbers as colours: white at 0, the other colours at both limits."""
    from plotly.graph_objects import Figure

    low, high = limits
    scale: list[list[Any]] = [[0, "var(--paper)"], [1, "var(--m0)"]]
    if low < 0:
        scale = [[0, "var(--worse)"], [-low / (high - low), "var(--paper)"], [1, "var(--m0)"]]
    gap = 1 if len(columns) <= 60 else 0
    trace = {
        "type": "heatmap", "x": [plot_label(c) for c in columns], "y": [plot_label(r) for r in rows], "z": values,
        "zmin": low, "zmax": high, "colorscale": scale, "xgap": gap, "ygap": 1, "hoverinfo": "text", "text": hover,
        "colorbar": {"thickness": 12, "outlinewidth": 0, "len": 1},
    }  # fmt: skip
    axis = {"showgrid": False, "type": "category", "fixedrange": True}
    return Figure(trace, {"xaxis": axis, "yaxis": axis | {"autorange": "reversed"}})

"""What the figures of a report share: their looks, and how methods are drawn.

Colours are names of variables of report.css, so that dark mode is defined in one place.
"""

import html
import json
from collections import Counter
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
SHARED_FROM = 16  # characters of JSON that are worth a reference
REFERENCE = "$"
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
    """A table of numbers as colours: the ground at 0, the other colours at both limits.

    Hovering tells the number and its place, row and column with `joint` between them. The fields are bars, one above
    the other, and opaque by their number: the page's bundle of plotly knows no `Heatmap`, and would draw a line.
    """
    from plotly.graph_objects import Figure

    low, high = limits
    scale: list[list[Any]] = [[0, "var(--paper)"], [1, "var(--m0)"]]
    if low < 0:
        scale = [[0, "var(--worse)"], [-low / (high - low), "var(--paper)"], [1, "var(--m0)"]]
    # A point that is not there brings the scale of colours.
    key = {"cmin": low, "cmax": high, "colorscale": scale, "showscale": True,
           "colorbar": {"thickness": 12, "outlinewidth": 0, "len": 1}}  # fmt: skip
    figure = Figure({"type": "scatter", "x": [None], "y": [None], "mode": "markers", "marker": {"color": [low], **key}})
    known = [(r, c, v) for r, of_row in enumerate(values) for c, v in enumerate(of_row) if v is not None]
    for is_below, colour, limit in ((False, "var(--m0)", high), (True, "var(--worse)", low)):
        fields = [(r, c, v) for r, c, v in known if (v < 0) == is_below]
        if fields:
            figure.add_bar(
                x=[c for _, c, _ in fields], base=[r - 0.5 for r, _, _ in fields], y=[1] * len(fields), width=1,
                customdata=[value for _, _, value in fields], textposition="none",
                text=[f"{escaped(rows[r])}{joint}{escaped(columns[c])}" for r, c, _ in fields],
                hovertemplate="%{text}<br>%{customdata:.3f}<extra></extra>",
                marker={"color": colour, "opacity": [min(1.0, value / limit) for _, _, value in fields],
                        "line": {"width": 1 if len(columns) <= 60 else 0, "color": "var(--paper)"}},
            )  # fmt: skip
    axes = []
    for names, ends in ((columns, [-0.5, len(columns) - 0.5]), (rows, [len(rows) - 0.5, -0.5])):  # the first row on top
        ticks = {"tickvals": list(range(len(names))), "ticktext": [plot_label(name) for name in names]}
        axes.append({"showgrid": False, "fixedrange": True, "range": ends, **ticks})
    return figure.update_layout(barmode="overlay", showlegend=False, xaxis=axes[0], yaxis=axes[1])


def share_parts(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as plain JSON values in which whatever stands there more than once stands in `parts`.

    {"$": n} is part n; with other keys beside it, an object that has all keys of part n and these. Figures of many
    choices repeat names, looks and steps: this is a third of the text, and report.js puts it together again.
    """
    counts = Counter[str]()

    def count(value: Any) -> None:
        if isinstance(value, str | dict | list):
            counts[text := json.dumps(value)] += 1
            if counts[text] == 1 and not isinstance(value, str):
                plain = plain_keys(value)
                counts.update([json.dumps(plain)] if plain else [])
                for part in value.values() if isinstance(value, dict) else value:
                    count(part)

    def pack(value: Any) -> Any:
        plain = plain_keys(value)
        for part, rest in ((value, {}), (plain, {k: v for k, v in value.items() if k not in plain} if plain else {})):
            if part and counts[text := json.dumps(part)] > 1 and len(text) > SHARED_FROM:
                if text not in places:
                    made = inside(part)
                    places[text] = len(parts)
                    parts.append(made)
                return {REFERENCE: places[text], **inside(rest)}
        return inside(value)

    def inside(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: pack(part) for name, part in value.items()}
        return [pack(part) for part in value] if isinstance(value, list) else value

    def plain_keys(value: Any) -> dict[str, Any]:
        # Of an object that holds others, the keys that hold none: of a trace its name and looks, without its points.
        pairs = value.items() if isinstance(value, dict) else ()
        plain = {name: part for name, part in pairs if not isinstance(part, dict | list)}
        return plain if len(plain) < len(pairs) else {}

    parts, places = list[Any](), dict[str, int]()
    count(figures)
    whole = pack(figures)
    return {"parts": parts, "whole": whole}

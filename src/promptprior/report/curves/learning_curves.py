"""How fast methods adapt: dev score by step, averaged over targets, and the curves of single runs.

Dev shots chose step and learning rate, so these scores flatter every method; they compare speeds, not results.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log2
from typing import TYPE_CHECKING

from promptprior.report.plots import interval_trace, method_style
from promptprior.report.results import Grid
from promptprior.report.section import Control, Plot, Section, Table, columns, list_words, make_table
from promptprior.report.statistics import Interval, stratified_bootstrap

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

USUAL_STEPS = (0, *(digit * 10**power for power in range(6) for digit in (1, 2, 5)))
FEW, SHOWN = 4, 8
CURVE_POINTS = 80  # points of one run that are drawn; more only make the page larger
CURVES = {"dev_score": "dev score", "dev_nll": "dev NLL", "train_loss": "training loss"}


@dataclass(frozen=True)
class Adaptation:
    """The mean curves of all trained methods at one k over the same targets, which all have dev scores.

    `curves` has, for each method, the mean dev score over targets at every step that all its runs have.
    """

    k: int
    targets: tuple[str, ...]
    curves: Mapping[str, Mapping[int, Interval]]
    sign_note: str = ""

    @classmethod
    def of(cls, grid: Grid, k: int) -> "Adaptation":
        """Mean curves over the targets on which every trained method has dev scores; none where there is none.

        A method's curve of a target counts where all its runs at shared seeds have dev scores.
        """
        runs: dict[str, dict[str, list[dict[int, float]]]] = {}  # method -> target -> dev score by step of each run
        for method in grid.methods:
            for target, rows in grid.shared_rows[method, k].items():
                curves = [
                    {p.step: grid.merit(target, p.dev_score) for p in row.curve if p.dev_score is not None}
                    for row in rows
                    if row.k == k
                ]
                if curves and all(curves):
                    runs.setdefault(method, {})[target] = curves
        targets = tuple(t for t in grid.shared[k] if runs and all(t in of_method for of_method in runs.values()))
        mean_curves = {}
        for method in runs if targets else ():
            of_target = {target: runs[method][target] for target in targets}
            steps = sorted(set.intersection(*(set(run) for curves in of_target.values() for run in curves)))
            points = {s: stratified_bootstrap({t: [run[s] for run in c] for t, c in of_target.items()}) for s in steps}
            if points:
                mean_curves[method] = points
        return cls(k, targets, mean_curves, grid.sign_note)

    def tables(self, baseline: str) -> tuple[Table, ...]:
        """Mean scores at some steps, where there are several.

        Steps 0, 1, 2, 5, 10, ... and the last; a few evenly spaced ones where these are not there.
        """
        steps = sorted({step for points in self.curves.values() for step in points})
        usual = [step for step in steps if step in USUAL_STEPS or step == steps[-1]]
        if len(steps) < 2:
            return ()
        if len(usual) >= min(FEW, len(steps)):
            steps = usual
        else:
            steps = list(dict.fromkeys([*steps[:: -(-len(steps) // SHOWN)], steps[-1]]))
        of_baseline = [score.estimate for score in self.curves.get(baseline, {}).values()]
        level = of_baseline[-1] if of_baseline else inf  # where nothing is reached
        rows = []
        for method, points in self.curves.items():
            first = next((step for step, score in points.items() if score.estimate >= level), None)
            rows.append((method, *map(points.get, steps), first))
        table = make_table(
            f"adaptation-k{self.k}",
            f"Learning curves of adaptation, k = {self.k}",
            f"Mean dev score after so many steps, over {len(self.targets)} targets ({', '.join(self.targets)}). Dev "
            "shots also chose step and learning rate, so that these scores flatter; they compare speeds. The last "
            f"column is the first step at which a method is where {baseline} ends.{self.sign_note}",
            columns("Method", [f"step {step}" for step in steps], {f"reaches {baseline}'s end": "count"}),
            rows,
        )
        return (table,)

    def figure(self, grid: Grid) -> "Figure":
        """The mean curves; steps stand on a scale that shows 0, 1, 2, 5 as well as hundreds."""
        from plotly.graph_objects import Figure

        if not self.curves:
            return _empty_figure("no dev scores are recorded here")
        figure = Figure()
        for method, points in self.curves.items():
            style = method_style(grid, method)
            figure.add_scatter(
                **interval_trace(style, {f"step {step}": i for step, i in points.items()}),
                x=[log2(1 + step) for step in points], mode="lines+markers",
                line={"color": style.colour, "width": 2},
                marker={"color": style.colour, "symbol": style.symbol, "size": 8},
            )  # fmt: skip
        steps = sorted({step for points in self.curves.values() for step in points})
        shown = [s for s in steps if len(steps) < 10 or s in USUAL_STEPS or s == steps[-1]]
        figure.update_xaxes(tickvals=[log2(1 + s) for s in shown], ticktext=[str(s) for s in shown], title="steps")
        figure.update_yaxes(title="dev score, mean over targets")
        return figure


def learning_curve_section(grid: Grid) -> Section:
    """How fast methods adapt, on average and on single targets."""
    by_k = {k: Adaptation.of(grid, k) for k in grid.ks}
    ks = Control("k", {k: str(k) for k in grid.ks}, grid.ks[-1] if grid.ks else None)
    plots = []
    if any(len(points) > 1 for a in by_k.values() for points in a.curves.values()):
        plots.append(
            Plot(
                "adaptation",
                "Learning curves of adaptation",
                "Dev score after so many steps from where each method starts, mean over targets with its 95% interval. "
                "Dev shots also chose step and learning rate: compare speeds here, results on test.",
                "Mean dev score of each method after each number of steps. The table of adaptation holds the same "
                "numbers.",
                (ks,),
                lambda k: by_k[k].figure(grid),
            )
        )
    with_curves = {row.target for row in grid.rows if row.curve}
    if with_curves:
        start = next(target for target in grid.targets if target in with_curves)
        plots.append(
            Plot(
                "curves",
                "Learning curves of one target",
                "Thin lines are single seeds, the thick line is their mean as far as all of them ran.",
                "Learning curves of each method on one target.",
                (Control("target", {t: t for t in grid.targets}, start), ks, Control("curve", CURVES, "dev_score")),
                lambda target, k, curve: curves_figure(grid, target, k, curve),
            )
        )
    found = []  # at each k: who reaches the baseline's last score first
    for k, a in by_k.items():
        end = [score.estimate for score in a.curves.get(grid.baseline, {}).values()][-1:]
        first: dict[str, int] = {}
        for method, points in a.curves.items():
            reached = [step for step, score in points.items() if end and score.estimate >= end[0]]
            first |= {method: min(reached)} if reached else {}
        own = first.pop(grid.baseline, None)
        if own is not None and len(a.curves) > 1:
            step = min(first.values(), default=inf)
            fastest = list_words([method for method in first if first[method] == step] or ["no other method"])
            at = f" at step {step:,}" if first else ""
            found.append(f"k = {k}: first to reach {grid.baseline}'s end: {fastest}{at}; itself at step {own:,}.")
    parts = tuple((k, a.tables(grid.baseline)) for k, a in by_k.items())
    return Section("Learning curves of adaptation", parts, tuple(plots), " ".join(found))


def curves_figure(grid: Grid, target: str, k: int, curve: str) -> "Figure":
    """Learning curves of every method on one target: seeds thin, their mean thick."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for method in grid.methods:
        runs: dict[int, dict[int, float]] = {}  # seed -> value by step
        for seed, row in grid.runs.get((method, target, k), {}).items():
            stride = max(1, -(-len(row.curve) // CURVE_POINTS))
            thinned = row.curve if stride == 1 else (*row.curve[:-1:stride], row.curve[-1])  # the last point stays
            values = {p.step: getattr(p, curve) for p in thinned if getattr(p, curve) is not None}
            if values:
                runs[seed] = values
        if not runs:
            continue
        style = method_style(grid, method)
        for seed, values in runs.items():
            figure.add_scatter(
                x=list(values), y=list(values.values()), mode="lines", name=style.label,
                legendgroup=style.name, showlegend=False, opacity=0.35, line={"color": style.colour, "width": 1},
                hovertemplate=f"%{{fullData.name}}, seed {seed}<br>step %{{x}}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
        common = [step for step in next(iter(runs.values())) if all(step in values for values in runs.values())]
        figure.add_scatter(
            x=common, y=[sum(values[step] for values in runs.values()) / len(runs) for step in common], mode="lines",
            name=style.label, legendgroup=style.name, line={"color": style.colour, "width": 2.5},
            hovertemplate="%{fullData.name}, mean<br>step %{x}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
    if not figure.data:
        return _empty_figure("no learning curve is recorded here")
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=CURVES[curve])
    return figure


def _empty_figure(text: str) -> "Figure":
    from plotly.graph_objects import Figure

    layout = {"height": 240, "annotations": [{"text": text, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}]}
    return Figure([{"type": "scatter", "x": [], "y": []}], layout)

"""Tables and figures of what was measured, from the rows alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure, Scatter
from plotly.io import to_html
from plotly.subplots import make_subplots

from promptprior.files import write_text
from promptprior.report.section import Column, Table, TableCell, columns, interval_cell, make_table
from promptprior.report.statistics import Interval, holm, interval, mean_test
from proving_ground.claims import CLAIMS, Claim
from proving_ground.trials import shares

Records = Sequence[Mapping[str, Any]]
"""Lines of rows.jsonl: the rows of one fit of one condition each."""
REFERENCES = ("untrained", "broad_bayes", "bayes", "entropy")  # arms that are no method


def values(records: Records, condition: str, arm: str, number: str, throws: int | None = None) -> list[float]:
    """A number of an arm in every fit of a condition."""
    return [
        row[number]
        for record in records
        if record["condition"] == condition
        for row in record["rows"]
        if row["arm"] == arm and throws in (None, row.get("throws")) and number in row
    ]


def share_of(records: Records, condition: str, throws: int) -> dict[str, list[float]]:
    """Every arm's share of the gain in every fit, in the order of fits."""
    found: dict[str, list[float]] = {}
    for record in sorted((r for r in records if r["condition"] == condition), key=lambda r: r["fit"]):
        for arm, value in shares(record["rows"], throws).items():
            found.setdefault(arm, []).append(value)
    return found


def names_of(records: Records, key: str) -> list[Any]:
    """The distinct values of a key of the rows, in order."""
    return list(dict.fromkeys(row[key] for record in records for row in record["rows"] if key in row))


def count_note(records: Records) -> str:
    """How many fits and targets the numbers come from."""
    by_condition: dict[str, int] = {}
    for record in records:
        by_condition[record["condition"]] = by_condition.get(record["condition"], 0) + 1
    fits = sorted(set(by_condition.values()))
    targets = sorted({row["targets"] for record in records for row in record["rows"] if "targets" in row})
    said = f"{' to '.join(map(str, dict.fromkeys((fits[0], fits[-1]))))} fits"
    return f"{said}, {' or '.join(map(str, targets))} targets a fit" if targets else said


def share_tables(claim: Claim, records: Records) -> list[Table]:
    """Shares of the gain for each number of throws, then the contrasts that were written down first."""
    conditions = [c for c in claim.conditions if any(r["condition"] == c for r in records)]
    throws, note = names_of(records, "throws"), count_note(records)
    methods = [arm for arm in names_of(records, "arm") if arm not in REFERENCES]
    made = []
    for n in throws:
        rows = []
        for condition in conditions:
            found = share_of(records, condition, n)
            nats = [interval(values(records, condition, arm, "nats", n)).estimate for arm in ("untrained", "bayes")]
            rows.append([condition, *nats, *(interval(found[arm]) for arm in ("broad_bayes", *methods))])
        heads = (Column("family", "text"), Column("untrained (nats)", "number"), Column("Bayes (nats)", "number"),
                 *(Column(arm, "interval", "two_digits") for arm in ("Bayes without sources", *methods)))  # fmt: skip
        made.append(
            make_table(
                f"{claim.name}_{n}",
                f"{claim.name}: share of the gain, {n} throws",
                f"0 is the untrained model, 1 Bayes who knows the family; means over fits, 95 % intervals. {note}.",
                heads,
                rows,
            )
        )
    if claim.contrasts:
        made.append(contrast_table(claim, records, conditions, throws))
    return made


def contrast_table(claim: Claim, records: Records, conditions: Sequence[str], throws: Sequence[int]) -> Table:
    """Differences of shares; a fit is the unit, Student's t the test, Holm's correction over all cells of the table."""
    gaps: dict[tuple[str, str, int], list[float]] = {}
    for condition in conditions:
        for n in throws:
            found = share_of(records, condition, n)
            for a, b in claim.contrasts:
                gaps[condition, f"{a} - {b}", n] = [x - y for x, y in zip(found[a], found[b], strict=True)]
    corrected = dict(zip(gaps, holm([mean_test(gap) for gap in gaps.values()]), strict=True))

    def cell(key: tuple[str, str, int]) -> TableCell:
        found = interval(gaps[key])
        is_clear = corrected[key] <= 0.05
        return interval_cell(found, "two_digits", ("better" if found.estimate > 0 else "worse") if is_clear else "")

    rows = [
        [contrast, condition, *(cell((condition, contrast, n)) for n in throws)]
        for contrast in dict.fromkeys(key[1] for key in gaps)
        for condition in conditions
    ]
    note = (
        "Differences of shares with 95 % intervals. A triangle: Holm's p over this table is at most 0.05 (Student's t, "
        f"a fit is the unit). {count_note(records)}."
    )
    heads = columns("contrast|family", {f"{n} throws": "two_digits" for n in throws})
    return make_table(f"{claim.name}_contrasts", f"{claim.name}: contrasts", note, heads, rows)


def nats_tables(claim: Claim, records: Records) -> list[Table]:
    """What each arm pays above Bayes."""
    rows = []
    for condition in claim.conditions:
        own = [r for r in records if r["condition"] == condition]
        for n in names_of(own, "throws"):
            best = values(own, condition, "bayes", "nats", n)
            entropy = interval(values(own, condition, "entropy", "nats", n)).estimate
            for arm in (a for a in names_of(own, "arm") if a not in REFERENCES):
                paid = values(own, condition, arm, "nats", n)
                above = interval([p - b for p, b in zip(paid, best, strict=True)])
                rows.append([condition, arm, str(n), entropy, interval(best).estimate, interval(paid).estimate, above])
    heads = (*columns("condition|method|throws", (), ("entropy", "Bayes", "method")), Column("above Bayes", "interval"))
    note = f"Nats a text. {count_note(records)}."
    return [make_table(claim.name, f"{claim.name}: nats above Bayes", note, heads, rows)]


def posterior_tables(claim: Claim, records: Records) -> list[Table]:
    """Errors of particles beside those that independent exact draws would have."""
    rows = []
    for condition in claim.conditions:
        own = [r for r in records if r["condition"] == condition]
        for arm in names_of(own, "arm"):
            row: list[Any] = [condition, arm]
            for number in ("error", "monte_carlo", "variance", "off_centre"):
                found = values(own, condition, arm, number)
                row.append(interval(found) if found else None)
            paid, best = (values(own, condition, arm, key) for key in ("nats", "bayes"))
            row.append(interval([1000 * (p - b) for p, b in zip(paid, best, strict=True)]))
            rows.append(row)
    heads = columns(
        "tokens x width|particles",
        {
            "error of P(heads)": "score",
            "Monte-Carlo error": "score",
            "variance kept": "two_digits",
            "mean off by (sd)": "two_digits",
            "above exact (millinats)": "two_digits",
        },
    )
    note = (
        "Root mean square over texts of the particles' mean P(heads) less the grid's, and what as many independent "
        f"exact draws would have; the variance of z over the exact one. {count_note(records)}."
    )
    return [make_table(claim.name, f"{claim.name}: particles against the grid", note, heads, rows)]


def variance_tables(claim: Claim, records: Records) -> list[Table]:
    """Variance by kernel and dimension."""
    conditions = [c for c in claim.conditions if any(r["condition"] == c for r in records)]
    rows = [
        [arm, *(interval(values(records, c, arm, "variance")) for c in conditions)] for arm in names_of(records, "arm")
    ]
    heads = columns("kernel, particles", {f"d = {c}": "two_digits" for c in conditions})
    note = f"Variance kept of a unit Gaussian, from exact draws; tokens have 8 dimensions. {count_note(records)}."
    return [make_table(claim.name, f"{claim.name}: variance kept", note, heads, rows)]


TABLES: Mapping[str, Callable[[Claim, Records], list[Table]]] = {
    "share": share_tables,
    "nats": nats_tables,
    "posterior": posterior_tables,
    "variance": variance_tables,
}


def figure(claim: Claim, records: Records) -> Figure:
    """The claim's numbers over its conditions: a line for each arm, a panel for each number of throws."""
    conditions = [c for c in claim.conditions if any(r["condition"] == c for r in records)]
    panels: list[int | None] = names_of(records, "throws") if claim.kind == "share" else [None]
    drawn = make_subplots(1, len(panels), shared_yaxes=True, subplot_titles=[f"{n} throws" for n in panels if n])
    number = {"nats": "nats", "posterior": "error", "variance": "variance"}.get(claim.kind, "share of the gain")
    for place, n in enumerate(panels, start=1):
        for arm in (a for a in names_of(records, "arm") if claim.kind != "share" or a not in ("bayes", "untrained")):
            found: dict[str, Interval] = {}
            for condition in conditions:
                own = (
                    share_of(records, condition, n).get(arm, [])
                    if claim.kind == "share" and n is not None
                    else values(records, condition, arm, number)
                )
                if own:
                    found[condition] = interval(own)
            bars = [(i.high if i.high is not None else i.estimate) - i.estimate for i in found.values()]
            drawn.add_trace(
                Scatter(
                    x=list(found), y=[i.estimate for i in found.values()], name=arm, legendgroup=arm,
                    showlegend=place == 1, error_y={"type": "data", "array": bars}, mode="lines+markers",
                ),
                row=1, col=place,
            )  # fmt: skip
    drawn.update_layout(title=claim.question, height=480, yaxis_title=number)
    if claim.kind == "variance":
        drawn.update_yaxes(type="log")
    return drawn


def write_tables(records: Records, folder: Path) -> None:
    """tables.md and figures.html of all claims that have rows."""
    by_claim = {name: own for name in CLAIMS if (own := [record for record in records if record["claim"] == name])}
    parts = []
    for name, own in by_claim.items():
        tables = "\n".join(table.to_markdown() for table in TABLES[CLAIMS[name].kind](CLAIMS[name], own))
        parts.append(f"## {name}\n\n{CLAIMS[name].question}\n\n{tables}")
    write_text(folder / "tables.md", "# The proving ground\n\n" + "\n".join(parts))
    pages = [
        to_html(figure(CLAIMS[name], own), full_html=False, include_plotlyjs=place == 0)
        for place, (name, own) in enumerate(by_claim.items())
    ]
    head = '<!doctype html><meta charset="utf-8"><title>The proving ground</title>'
    write_text(folder / "figures.html", head + "\n".join(pages))

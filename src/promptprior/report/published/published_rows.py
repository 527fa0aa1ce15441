"""Rows that papers printed, beside those of a comparison that a preset of theirs made.

The numbers stand in rows.yaml with their evidence. They were measured on other code, texts and often other rows: they
say what a paper reports, not what these results should be.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from promptprior.config.yaml_file import load_yaml
from promptprior.report.results import Grid
from promptprior.report.section import DASH, Section, Value, columns, make_table

ROWS = Path(__file__).with_name("rows.yaml")
"""Under `tables`, by preset: `note`, `targets` that have single scores, and `rows`.

A row is of a `method`, called `ours` here (if it is here), and has its `evidence`, `scores` in the order of the
targets, `mean` and `arg` in percent, and `k`, as far as they are known.
"""
TITLE = "Published rows"
EVIDENCE = (
    "Evidence: C author code, logs or released metrics; X other public code or released files; R recalled from the "
    "paper, not checked against it. Measured elsewhere, on other rows and texts: no test compares them."
)


def published_section(grid: Grid, preset: str | None) -> Section:
    """Published rows of a preset, each followed by this comparison's rows of the same method; none without a preset.

    A mean is over the targets of the table, or as the paper printed it where single scores are not known or all its
    targets are here. ARG is the mean over targets of (score - baseline) / baseline; of this comparison it is left out
    where a baseline is not above zero.
    """
    if preset is None:
        return Section(TITLE, ())
    table: Mapping[str, Any] = load_yaml(ROWS)["tables"].get(
        preset, {"note": "No row of this preset could be recovered.", "rows": ()}
    )
    known = table.get("targets", ())
    targets = [t for t in known if t in grid.targets] or list(grid.targets)

    def own_rows(method: str) -> list[tuple[Value, ...]]:
        """The mean scores of a method here, for each k."""
        rows: list[tuple[Value, ...]] = []
        for k in grid.ks:
            scores, base = (
                {t: mean(grid.seed_scores[m, t, k].values()) for t in targets if (m, t, k) in grid.seed_scores}
                for m in (method, grid.baseline)
            )
            gains = [(scores[t] - base[t]) / base[t] for t in scores if base.get(t, 0.0) > 0]
            arg = mean(gains) if method != grid.baseline and scores and len(gains) == len(scores) else None
            if scores:
                average = mean(scores.values())
                rows.append((method, "here", "", str(k), *map(scores.get, targets), average, arg))
        return rows

    rows: list[tuple[Value, ...]] = []
    left, last = dict.fromkeys(grid.methods), {row["ours"]: row for row in table["rows"] if "ours" in row}
    for row in table["rows"]:
        scores = {t: percent / 100 for t, percent in zip(known, row.get("scores", ()), strict=False)}
        shown = [scores[t] for t in targets if t in scores]
        average = mean(shown) if shown else None
        if "mean" in row and (not shown or set(known) <= set(targets)):
            average = row["mean"] / 100
        arg = row["arg"] / 100 if "arg" in row else None
        k = str(row["k"]) if "k" in row else DASH
        rows.append((row["method"], "published", row["evidence"], k, *map(scores.get, targets), average, arg))
        if (ours := row.get("ours")) in left and row is last[ours]:
            del left[ours]
            rows += own_rows(ours)
    rows += [own for method in left for own in own_rows(method)]
    heads = columns(
        "Method|Whose|Evidence|k", (), {**dict.fromkeys(targets, "score"), "Mean": "score", "ARG": "percent"}
    )
    note = f"{table['note']} {EVIDENCE}"
    return Section(TITLE, ((None, (make_table("published", f"Published rows of {preset}", note, heads, rows),)),))

"""Contrasts and cautions: the verdicts of docs/protocol.md, on planted grids."""

import numpy as np
import pytest
from scipy import stats

from promptprior.errors import SpecError
from promptprior.report.page import make_report
from promptprior.report.protocol.cautions import cautions
from promptprior.report.protocol.contrasts import contrast_pairs, contrasts
from promptprior.report.results import Grid, Row
from promptprior.report.statistics import holm
from tests.report.result_rows import grid_rows, result_row

DRAWS = (1, 2, 3, 4, 5, 6)
TARGETS = tuple("abcdefgh")


def row(method, target, seed, score, **changes):
    prior = 0 if method == "prompt_tuning" else 1
    cost = {"seconds": 1.0, "rows": 1, "tokens": 9, "source_seconds": prior * seed, "source_rows": prior,
            "source_tokens": prior * 100}  # fmt: skip
    return result_row(
        cell=f"{method}-{target}-{seed}", method=method, target=target, k=4, seed=seed, score=float(score), cost=cost,
        sources=["s"] if prior else [], n_test=240, constant=0.25,
        settings={"prior": f"{method}-seed{seed}-abc"} if prior else {},
    ) | changes  # fmt: skip


def rows_of(gains, one_prior=(), **changes):
    """A grid in which each method has a gain over prompt tuning, a spread by fit of 0.02 and noise of 0.02."""
    rng = np.random.default_rng(2)
    rows = []
    for method, gain in {"prompt_tuning": 0.0, **gains}.items():
        for seed in DRAWS:
            fit = rng.normal(0, 0.02)
            for target in TARGETS:
                made = row(method, target, seed, 0.5 + gain + fit + rng.normal(0, 0.02), **changes)
                if method in one_prior:
                    made["settings"] = {"prior": f"{method}-seed1-abc"}
                rows.append(made)
    return rows


def grid(rows):
    return Grid(tuple(Row.from_json(r) for r in rows), "prompt_tuning")


def test_contrasts_are_students_test_over_fits_and_holm_over_just_these():
    rows = rows_of({"better": 0.2, "equal": 0.0, "other": 0.1})
    pairs = [("better", "prompt_tuning"), ("prompt_tuning", "better"), ("equal", "prompt_tuning")]
    tested = contrasts(grid(rows), pairs)
    ps = []
    for (first, second), c in zip(pairs, tested, strict=True):
        scores = {m: np.array([[r["score"] for r in rows if (r["method"], r["seed"]) == (m, d)] for d in DRAWS])
                  for m in (first, second)}  # fmt: skip
        by_draw = (scores[first] - scores[second]).mean(1)
        assert c.by_fit == pytest.approx(by_draw)
        wanted = stats.ttest_1samp(by_draw, 0)
        assert c.p == pytest.approx(wanted.pvalue)
        assert (c.primary.low, c.primary.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
        ps.append(c.p)
    assert [c.p_holm for c in tested] == pytest.approx(holm(ps))  # not over the fourth method
    assert [c.verdict for c in tested] == ["yes", "no", "not decidable with 6 fits"]
    assert all(c.everywhere.low <= c.primary.estimate <= c.everywhere.high for c in tested)
    assert tested[2].smallest > abs(tested[2].primary.estimate)


def test_draws_of_one_prior_decide_nothing():
    (c,) = contrasts(grid(rows_of({"lucky": 0.3}, one_prior=("lucky",))), [("lucky", "prompt_tuning")])
    assert (c.draws, len(c.by_fit), c.smallest) == (6, 1, None)
    assert (c.primary.low, c.everywhere.low) == (None, None)
    assert c.verdict == "not decidable with 1 fit"


def test_a_method_that_ran_once_stands_beside_every_draw_on_either_side():
    rows = rows_of({"better": 0.2})
    rows += [row("zero_shot", t, 0, 0.4, k=0, steps=0, best_step=None, sources=[], settings={}) for t in TARGETS]
    for r in rows[-len(TARGETS) :]:
        r["cost"] = {**r["cost"], "source_tokens": 0}
    ours, theirs = contrasts(grid(rows), [("better", "zero_shot"), ("zero_shot", "better")])
    assert len(ours.by_fit) == 6
    assert ours.by_fit == pytest.approx([-x for x in theirs.by_fit])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a", "contrast 'a' (--contrasts): expected two methods as \"a - b\""),
        ("spot - spot", "expected two methods"),
        ("spot - mutitask", "mutitask'; did you mean 'multitask'"),
    ],
)
def test_a_wrong_contrast_is_named(text, error):
    with pytest.raises(SpecError) as caught:
        contrast_pairs([text], ["spot", "multitask"])
    assert error in str(caught.value)
    with pytest.raises(SpecError, match="named twice"):
        contrast_pairs(["spot - multitask", "multitask - spot"], ["spot", "multitask"])


def gates(rows):
    return {c.gate: c for c in cautions(grid(rows))}


def test_a_sound_grid_passes_every_gate():
    assert gates(rows_of({"better": 0.2})) == {}


def test_each_gate_finds_what_it_is_for():
    assert (
        "better, k = 4: 8 of 8 targets"
        in gates(rows_of({"better": 0.1}, constant=0.9))["below a constant answer"].found
    )
    untrained = rows_of({"better": 0.1})
    for r in untrained[:5]:  # of 48 cells of the baseline: more than a tenth
        r["best_step"] = 0
    assert gates(untrained)["baseline untrained"].found == "prompt_tuning kept its start in 5 of 48 cells"
    untrained[0]["best_step"] = 80
    assert gates(untrained) == {}
    zero = [row("zero_shot", t, 0, 0.7, k=0, steps=0, best_step=None, sources=[], settings={}) for t in TARGETS]
    for r in zero:
        r["cost"] = {**r["cost"], "source_tokens": 0}
    assert set(gates(rows_of({"better": 0.1}) + zero)) == {"baseline below zero-shot"}
    one = gates(rows_of({"better": 0.1, "lucky": 0.1}, one_prior=("lucky",)))
    assert one["one prior for several draws"].found == "lucky (6 draws, 1 prior)"
    weak = gates(rows_of({"better": 0.1}, n_test=60, constant=None))
    assert set(weak) == {"few test rows", "constant answer unknown"}
    assert not any(c.spoils for c in weak.values())


def test_lower_is_better_is_below_a_constant_when_it_is_above():
    found = gates(rows_of({}, metric="nll", constant=0.3, scores={"nll": 0.5}))
    assert "prompt_tuning" in found["below a constant answer"].found
    assert "below a constant answer" not in gates(rows_of({}, metric="nll", constant=0.9, scores={"nll": 0.5}))


def test_the_page_shows_contrasts_first_and_says_what_spoils_claims(tmp_path):
    rows = rows_of({"better": 0.2, "lucky": 0.1}, one_prior=("lucky",))
    report = make_report(rows, contrasts=[("better", "prompt_tuning"), ("lucky", "prompt_tuning")])
    assert [section.title for section in report.sections[:2]] == ["Contrasts", "What these numbers cannot say"]
    text = report.write_markdown(tmp_path / "report.md").read_text()
    assert "Not a basis for claims: one prior for several draws." in text
    assert "| better - prompt_tuning | 4 | 8 | 6 | 6 |" in text
    assert "not decidable with 1 fit |" in text
    assert "Contrasts" not in [s.title for s in make_report(grid_rows()).sections]

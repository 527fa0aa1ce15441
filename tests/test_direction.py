"""Metrics of which lower is better (nll, brier, ece): selection on dev, the guard and reports all prefer the lower."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from promptprior import plugins
from promptprior.adapt import adapt, make_episode
from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.choose import held_out_of, judged
from promptprior.backbone import Backbone
from promptprior.cli import main
from promptprior.compare.plan import Plan, Tasks, cells
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.fit import RunControl
from promptprior.guard import Candidate, Guarded
from promptprior.methods import make_method
from promptprior.report.gains import comparisons
from promptprior.report.guard_analysis import guard_section
from promptprior.report.page import make_report
from promptprior.report.results import Grid, Row, parse, read_rows
from promptprior.report.scores import Overall
from promptprior.report.similarity_gain import TaskSimilarity, similarity_gain_correlation
from promptprior.report.statistics import average_relative_gain
from promptprior.tasks.metrics import METRICS, Metric, merit
from promptprior.tasks.task import Task
from promptprior.watch import tensorboard
from tests.backbone.tiny import saved_model, tiny
from tests.compare.test_before import with_default_of_then
from tests.report.result_rows import grid_rows, result_row, task_similarity
from tests.test_cli import write_task
from tests.world import always, choice_task, early

LOWER = ("nll", "brier", "ece")
STEEP = Settings(length=4, target=Training(steps=8, batch_size=4, learning_rates=(0.5, 3.0), eval_every=1))


@cache
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


def first_metric(task: Task, name: str) -> Task:
    return replace(task, metrics=(name, "accuracy"))


@cache
def adapted(metric: str) -> Adapted:
    episode = make_episode(first_metric(choice_task("target", always(0)), metric), 4, 13)
    return adapt(make_method("prompt_tuning"), [episode], backbone(), settings=STEEP)[0]


def test_merit_is_higher_where_a_metric_is_better_and_its_own_inverse() -> None:
    for name, known in METRICS.items():
        assert (merit(name, 0.7) > merit(name, 0.2)) == known.higher_is_better
        assert merit(name, merit(name, 0.3)) == 0.3
    with pytest.raises(SpecError, match="unknown metric 'nil'; did you mean 'nll'"):
        merit("nil", 0.3)


@pytest.mark.parametrize("name", LOWER)
def test_dev_keeps_the_step_with_the_lowest_value(name: str) -> None:
    done = adapted(name)
    on_dev = {p["step"]: p["dev_score"] for p in done.curve if p["dev_score"] is not None}
    assert len(set(on_dev.values())) > 2
    assert on_dev[done.best_step] == min(on_dev.values()) == pytest.approx(done.dev_score, rel=1e-5)
    assert all(value >= 0 for value in on_dev.values())  # rows and headers have the metric itself, not its merit
    assert done.prompt.header.scores["dev"]["dev_score"] == done.dev_score  # type: ignore[index]


@pytest.mark.parametrize("name", [*LOWER, "accuracy"])
def test_what_watchers_get_is_called_merit_and_what_rows_get_is_the_value(name: str, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = Settings(length=4, target=Training(steps=3, batch_size=4, learning_rates=(0.5,), eval_every=1))
    episode, control = adapted(name).episode, RunControl(watch=tensorboard(tmp_path))
    [done] = adapt(make_method("prompt_tuning"), [episode], backbone(), settings=settings, control=control)
    log = events.EventAccumulator(str(tmp_path / "target"))
    log.Reload()
    assert "dev_score" not in log.Tags()["scalars"]
    logged = {event.step: merit(name, event.value) for event in log.Scalars("dev_merit")}
    assert logged == pytest.approx({p["step"]: p["dev_score"] for p in done.curve if p["step"]}, rel=1e-5)


def test_dev_picks_the_rate_with_the_lowest_value() -> None:
    episode = adapted("nll").episode
    apart = []
    for rate in STEEP.target.learning_rates:
        settings = replace(STEEP, target=replace(STEEP.target, learning_rates=(rate,)))
        apart += adapt(make_method("prompt_tuning"), [episode], backbone(), settings=settings)
    best = min(apart, key=lambda a: a.dev_score or 0.0)
    assert adapted("nll").learning_rate == best.learning_rate
    assert adapted("nll").dev_score == pytest.approx(best.dev_score, rel=1e-4)


def candidate(method: str, task: Task) -> Candidate:
    settings = replace(STEEP, target=Training(steps=0))
    [done] = adapt(make_method(method), [make_episode(task, 4, 13)], backbone(), settings=settings)
    return judged(done, held_out_of(backbone(), done))


def test_the_guard_prefers_the_lower_and_is_ahead_by_a_positive_gap() -> None:
    task = first_metric(choice_task("target", always(0)), "brier")
    rivals = [candidate("zero_shot", task), candidate("prompt_tuning", task)]
    best = min(rivals, key=lambda c: c.score or 0.0)
    assert rivals[0].score != rivals[1].score
    for order in (rivals, rivals[::-1]):
        verdict = Guarded.of(order)
        assert verdict.adapted.prompt.header.method == best.method
        assert verdict.gap.mean == pytest.approx(abs((rivals[0].score or 0) - (rivals[1].score or 0)))


def as_error(row: dict[str, object]) -> dict[str, object]:
    """The same result told by a metric of which lower is better: an error of 1 - score."""
    points = [{**p, "dev_score": 1 - p["dev_score"]} for p in row["curve"]]  # type: ignore[attr-defined, operator]
    dev = None if row["dev_score"] is None else 1 - row["dev_score"]  # type: ignore[operator]
    score = 1 - row["score"]  # type: ignore[operator]
    return {**row, "metric": "brier", "score": score, "dev_score": dev, "curve": points}


def grid(rows: list[dict[str, object]]) -> Grid:
    return Grid(tuple(Row.from_json(row) for row in rows), "prompt_tuning")


def test_a_report_of_errors_says_what_a_report_of_scores_says() -> None:
    plain, errors = grid(grid_rows()), grid([as_error(row) for row in grid_rows()])
    for one, other in zip(comparisons(plain), comparisons(errors), strict=True):
        assert (one.method, one.k, one.verdict) == (other.method, other.k, other.verdict)
        assert other.difference.estimate == pytest.approx(one.difference.estimate)
        assert [d.verdict for d in other.targets.values()] == [d.verdict for d in one.targets.values()]
        assert (other.gains.wins, other.gains.losses) == (one.gains.wins, one.gains.losses)
        assert (other.p, other.p_holm) == pytest.approx((one.p, one.p_holm))
        assert other.improvement.estimate == pytest.approx(one.improvement.estimate)
    for k in plain.ks:
        at_k, reverse = Overall.of(plain, k), Overall.of(errors, k)
        assert at_k.ranking is not None
        assert reverse.ranking is not None
        assert reverse.ranking.mean_ranks == at_k.ranking.mean_ranks
        assert [(p.wins, p.losses) for p in reverse.pairs] == [(p.wins, p.losses) for p in at_k.pairs]
    for one, other in zip(guard_section(plain).tables, guard_section(errors).tables, strict=True):
        for ours, theirs in zip(other.rows, one.rows, strict=True):  # gain over the baseline, and share kept
            assert [c.text for c in ours[3:]] == [c.text for c in theirs[3:]]
            assert ours[3].numbers[0] == pytest.approx(theirs[3].numbers[0])
    similarity = parse(TaskSimilarity, task_similarity(), "similarity")
    points, reverse_points = (similarity_gain_correlation(g, similarity) for g in (plain, errors))
    for place, correlation in points.items():
        gains = [gain for *_, gain in correlation.points]
        assert [gain for *_, gain in reverse_points[place].points] == pytest.approx(gains)


def test_a_report_shows_scores_as_they_are_and_says_which_way_is_better(tmp_path: Path) -> None:
    rows = [
        result_row(cell=f"{m}{s}", method=m, seed=s, metric="nll", score=score + s / 1000, sources=src)
        for m, score, src in (("prompt_tuning", 0.9, []), ("multitask", 0.4, ["a"]), ("spot", 2.0, ["a"]))
        for s in range(4)
    ]
    report = make_report(rows)
    report.write_markdown(tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert "nll (lower is better)" in text
    assert "multitask (+0.500; clearly better on 1 of 1 targets)" in text
    assert "Higher is better: scores of capital, where lower is better, count with a minus sign." in text
    scores = next(t for t in report.tables if t.name == "scores-k16")
    assert [cell.text for cell in scores.rows[0][1:]] == ["0.902", "0.402", "2.002"]
    assert [cell.verdict for cell in scores.rows[0][2:]] == ["better", "worse"]
    front = next(t for t in report.tables if t.name == "pareto-k16")
    assert {row[0].text for row in front.rows if row[-1].text == "yes"} == {"multitask"}


def test_relative_gains_of_errors_are_the_share_that_is_saved() -> None:
    ours, base = {"a": [0.8, 0.6], "b": [-0.5, -0.3]}, {"a": [0.5, 0.5], "b": [-0.8, -0.8]}
    gains = average_relative_gain(ours, base, lower_is_better=["b"])
    assert gains.gain
    assert gains.gain.estimate == pytest.approx(((0.7 / 0.5 - 1) + (1 - 0.4 / 0.8)) / 2)
    assert gains.median == pytest.approx(gains.gain.estimate)
    assert (gains.wins, gains.undefined) == (2, ())
    assert average_relative_gain(ours, base).undefined == ("b",)  # a score below 0 that is better when higher


def test_a_metric_of_another_package_has_its_own_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"edits": Metric(lambda _: 0.0, higher_is_better=False)}
    monkeypatch.setattr(plugins, "load_plugins", lambda *_, **__: own)
    rows = [result_row(metric="edits"), result_row(cell="c1", target="other", metric="elsewhere")]
    assert grid(rows).lower_is_better == ["capital"]
    assert "higher is taken to be better: elsewhere" in " ".join(make_report(rows).notices)


def test_only_cells_of_such_tasks_have_other_keys_than_before() -> None:
    task = choice_task("target", early)
    keys = {}
    for name in ("accuracy", "nll"):
        tasks = Tasks((), (first_metric(task, name),), {})
        plan = with_default_of_then(Plan(methods=("prompt_tuning",), targets=("target",), shots=(2,), seeds=(13,)))
        keys[name] = cells(plan, tasks, backbone())[0].key
    assert keys["accuracy"] == "dcfff8fedb1b3684"
    assert keys["nll"] != "211ca089113ea72a"


def test_a_comparison_by_nll_from_files_to_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_model(tmp_path / "model", 0)
    for name, letters in {"one": "ae", "two": "st"}.items():
        write_task(tmp_path / "data" / name, letters)
        spec = "doc_to_text: '{{ text }}'\ndoc_to_target: label\ndoc_to_choice: [low, high]\n"
        spec = f"task: {name}\noutput_type: multiple_choice\nmetric_list: [nll, accuracy]\n{spec}"
        (tmp_path / "data" / name / "spec.yaml").write_text(spec)
    words = f"""compare --methods zero_shot,prompt_tuning,multitask --sources one --targets two --shots 2 --seeds 13,21
        --data {tmp_path}/data --backbone {tmp_path}/model --dtype float32 --device cpu --length 3 --steps 6
        --target.eval-every 1 --target.learning-rates 3 --test-limit 8 --output {tmp_path}/out"""
    assert main(words.split()) == 0
    capsys.readouterr()
    rows = read_rows(tmp_path / "out" / "results.jsonl")
    trained = [row for row in rows if row.k]
    for row in trained:
        on_dev = {p.step: p.dev_score for p in row.curve if p.dev_score is not None}
        assert row.metric == "nll"
        assert on_dev[row.best_step or 0] == min(on_dev.values()) == pytest.approx(row.dev_score, rel=1e-5)
    assert any(row.best_step for row in trained)
    means = {m: sum(r.score or 0 for r in rows if r.method == m) / 2 for m in ("prompt_tuning", "multitask")}
    report = make_report(rows)
    [compared] = [c for c in report.comparisons if c.method == "multitask"]
    assert compared.difference.estimate == pytest.approx(means["prompt_tuning"] - means["multitask"])
    assert "nll (lower is better)" in (tmp_path / "out" / "report.html").read_text()

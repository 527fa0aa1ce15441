"""A comparison end to end on a tiny model: kept by content, never run twice, failures written down."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.cli.verbs.report_verb import ReportPlan
from promptprior.compare import execute, run
from promptprior.compare.plan import Plan, Tasks, cells
from promptprior.compare.power import power_lines
from promptprior.compare.progress import ProgressDisplay
from promptprior.compare.schedule import Fit, WorkerContext, remaining_work
from promptprior.config.comparison_folder import ANSWERS
from promptprior.config.mapping import from_mapping
from promptprior.config.training import Settings, Training
from promptprior.config.yaml_file import load_yaml
from promptprior.errors import SpecError, TrainingError
from promptprior.methods import make_method
from promptprior.report.examples.kept_answers import read_answers
from promptprior.report.results import Row, read_rows
from promptprior.tasks.task import Example, Task
from tests.backbone.tiny import tiny
from tests.report.result_rows import grid_rows


def words(name: str, low: str, high: str, count: int = 24) -> Task:
    """Texts of two kinds of letters; the answer names the kind."""

    def example(i: int, split: str) -> Example:
        kind = i % 2
        letters = (low, high)[kind]
        text = "".join(letters[(i * 7 + j * (i + 3)) % len(letters)] for j in range(6)) + f" {split[:2]}{i}"
        return Example(f"{split}{i}", text, ("a", "b")[kind], ("a", "b"), kind)

    splits = {s: tuple(example(i, s) for i in range(count)) for s in ("train", "validation", "test")}
    return Task(name, "multiple_choice", ("accuracy",), splits)


TASKS = {"one": words("one", "cde", "XYZ"), "two": words("two", "fgh", "UVW"), "three": words("three", "ijk", "RST")}
SHORT = Settings(
    length=3,
    source=Training(steps=3, batch_size=4),
    target=Training(steps=2, batch_size=2, eval_every=1),
)


@pytest.fixture
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(run, "load_task", lambda name, *_: TASKS[name])
    monkeypatch.setattr(run, "missing_tasks", lambda *_: [])
    return Plan(
        methods=("zero_shot", "prompt_tuning", "multitask", "spot"),
        sources=("one", "two"),
        targets=("three",),
        shots=(2,),
        seeds=(13, 21),
        settings=SHORT,
        output=tmp_path / "out",
    )


def say_nothing(_: str) -> None:
    """Keep progress out of the tests' output."""


def lines(plan: Plan) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (plan.output / run.RESULTS).read_text().splitlines()]


def test_every_cell_once_with_report_priors_and_prompts(plan: Plan, backbone: Backbone) -> None:
    page = run.compare(plan, backbone, say_nothing)
    rows = read_rows(plan.output / run.RESULTS)
    assert [(r.method, r.k, r.seed) for r in rows] == [
        ("zero_shot", 0, 0),
        ("prompt_tuning", 2, 13),
        ("multitask", 2, 13),
        ("spot", 2, 13),
        ("prompt_tuning", 2, 21),
        ("multitask", 2, 21),
        ("spot", 2, 21),
    ]
    assert all(r.is_ok and r.n_test == 24 for r in rows)
    assert page.read_text().startswith("<!doctype html>") or "<html" in page.read_text()[:200].lower()
    assert len(list((plan.output / "prompts").iterdir())) == len(rows)
    assert len(list((plan.output / "priors").iterdir())) == 4
    spot = next(r for r in rows if r.method == "spot")
    assert spot.sources == ("one", "two")
    assert spot.cost.source_rows > 0
    assert set(spot.shots.train_ids).isdisjoint(spot.shots.dev_ids)


def test_finished_cells_are_not_run_again_and_a_changed_setting_reuses_none(
    plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.compare(plan, backbone, say_nothing)
    before = lines(plan)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished cell was run again")

    with monkeypatch.context() as patch:
        patch.setattr(execute, "adapt", refuse)
        patch.setattr(execute, "fit", refuse)
        run.compare(plan, backbone, say_nothing)
    assert lines(plan) == before

    longer = replace(SHORT, target=replace(SHORT.target, steps=3))
    run.compare(replace(plan, settings=longer), backbone, say_nothing)
    new = lines(plan)[len(before) :]
    assert {r["method"] for r in new} == {"zero_shot", "prompt_tuning", "multitask", "spot"}
    assert len({r["cell"] for r in lines(plan)}) == 2 * len(before)


def test_one_missing_target_does_not_change_the_other_cells_keys(plan: Plan, backbone: Backbone) -> None:
    def keys(targets: Sequence[str]) -> set[str]:
        tasks = Tasks((TASKS["one"],), tuple(TASKS[t] for t in targets), {})
        return {c.key for c in cells(replace(plan, sources=("one",)), tasks, backbone)}

    assert keys(["three"]) < keys(["three", "two"])


def test_cells_that_generate_more_tokens_are_others(plan: Plan, backbone: Backbone) -> None:
    free = Task("free", "generate_until", ("exact_match",), TASKS["one"].examples)
    keys = []
    for target in (free, replace(free, max_gen_toks=32), replace(free, max_gen_toks=4)):
        here = replace(plan, methods=("zero_shot",), sources=())
        keys.append([cell.key for cell in cells(here, Tasks((), (target,), {}), backbone)])
    assert keys[0] == keys[1] != keys[2]


def test_a_head_that_shots_teach_has_a_cell_for_every_draw(plan: Plan, backbone: Backbone) -> None:
    tasks, here = Tasks((), (TASKS["two"],), {}), replace(plan, methods=("zero_shot",), sources=(), seeds=(13, 21))
    taught = replace(here, options={"zero_shot": {"head": "linear"}})
    assert [(cell.k, cell.seed) for cell in cells(here, tasks, backbone)] == [(0, 0)]
    draws = [(cell.k, cell.seed) for cell in cells(taught, tasks, backbone)]
    assert draws == [(k, seed) for seed in (13, 21) for k in plan.shots]


def test_compiled_cells_are_others(plan: Plan, backbone: Backbone) -> None:
    tasks = Tasks((TASKS["one"],), (TASKS["two"],), {})
    here = replace(plan, sources=("one",))
    plain, compiled = (cells(p, tasks, backbone) for p in (here, replace(here, compile=True)))
    assert {c.key for c in plain}.isdisjoint(c.key for c in compiled)


def test_a_failing_group_is_recorded_and_tried_again(
    plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = execute.adapt

    def failing(method: Any, *args: Any, **kwargs: Any) -> Any:
        if method.name == "multitask":
            raise TrainingError("planted")
        return real(method, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "adapt", failing)
        run.compare(plan, backbone, say_nothing)
    bad = [r for r in read_rows(plan.output / run.RESULTS) if not r.is_ok]
    assert {(r.method, r.error) for r in bad} == {("multitask", "TrainingError: planted")}
    run.compare(plan, backbone, say_nothing)
    assert all(r.is_ok for r in read_rows(plan.output / run.RESULTS))


def test_killed_between_two_runs_the_rest_is_the_same(
    plan: Plan, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProgressDisplay, "every", 0.0)
    run.compare(plan, backbone, say_nothing)

    class Killed(BaseException):
        """Like SIGKILL, nothing in the library catches it."""

    heard: list[str] = []

    def die(line: str) -> None:
        heard.append(line)
        if "spot, seed 13" in line and "testing" in line:
            raise Killed

    other = replace(plan, output=tmp_path / "other")
    with pytest.raises(Killed):
        run.compare(other, backbone, die)
    run.compare(other, backbone, say_nothing)

    def results(p: Plan) -> list[tuple[object, ...]]:
        return sorted((r["cell"], r["score"], r["dev_score"], r["best_step"]) for r in lines(p))

    assert results(other) == results(plan)


def test_sources_lose_the_texts_of_targets(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    leak = TASKS["three"].examples["test"][0]
    source = replace(
        TASKS["one"],
        examples={**TASKS["one"].examples, "train": (*TASKS["one"].examples["train"], replace(leak, id="x"))},
    )
    known = {**TASKS, "leaky": source, "again": TASKS["three"]}
    monkeypatch.setattr(run, "load_task", lambda name, *_: known[name])
    monkeypatch.setattr(run, "missing_tasks", lambda *_: [])
    tasks = run.load_tasks(replace(plan, sources=("leaky",)))
    assert tasks.left_out == {"one": 1}
    assert leak.text not in {e.text for e in tasks.sources[0].examples["train"]}
    with pytest.raises(SpecError, match="the same task stands on both sides"):
        run.load_tasks(replace(plan, sources=("again",)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"methods": ("spott",)}, "did you mean 'spot'"),
        ({"targets": ()}, "--targets"),
        ({"seeds": (13, 13)}, "names something twice"),
        ({"shots": (0,)}, r"shots \(0,\) \(--shots\): expected at least one number, each at least 1"),
        ({"sources": ()}, "learn from source tasks"),
        ({"sources": ("three",)}, "cannot be among its own sources"),
        ({"options": {"maml": {}}}, "not among --methods"),
        ({"options": {"spot": {"tops": 3}}}, "did you mean 'top'"),
    ],
)
def test_a_wrong_plan_fails_before_anything_is_loaded(plan: Plan, change: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        replace(plan, **change)
    assert not plan.output.exists()


def test_one_prior_for_all_seeds(plan: Plan, backbone: Backbone) -> None:
    plan = replace(plan, methods=("multitask",), source_seed=21)
    run.compare(plan, backbone, say_nothing)
    rows = read_rows(plan.output / run.RESULTS)
    assert [p.name.rsplit("-", 1)[0] for p in (plan.output / "priors").iterdir()] == ["multitask-seed21"]
    assert [r.seed for r in rows] == [13, 21]
    assert {r.cost.source_rows for r in rows} == {12}
    assert all(r.settings["source_seed"] == 21 for r in rows)


def test_rows_name_the_prior_they_started_from(plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    real = execute.adapt

    def failing(method: Any, *args: Any, **kwargs: Any) -> Any:
        if method.name == "spot":
            raise TrainingError("planted")
        return real(method, *args, **kwargs)

    monkeypatch.setattr(execute, "adapt", failing)
    run.compare(plan, backbone, say_nothing)
    priors = {(r.method, r.seed): r.settings.get("prior") for r in read_rows(plan.output / run.RESULTS)}
    for method, seed in (("multitask", 13), ("multitask", 21), ("spot", 13), ("spot", 21)):
        name = priors[method, seed]
        assert name.startswith(f"{method}-seed{seed}-")
        assert (plan.output / "priors" / name / "prior").is_dir()
    assert priors["zero_shot", 0] is priors["prompt_tuning", 13] is None


def test_cells_that_a_method_cannot_serve_are_left_out_and_said(
    plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "it answers only tasks with three texts"
    serves = type(make_method("spot")).serves
    monkeypatch.setattr(
        type(make_method("prompt_tuning")),
        "serves",
        lambda method, task: reason if (method.name, task.name) == ("prompt_tuning", "two") else serves(method, task),
    )
    plan = replace(plan, sources=("one",), targets=("two", "three"), seeds=(13,))
    heard = list[str]()
    preview = run.preview(plan, backbone)
    page = run.compare(plan, backbone, heard.append)
    line = f"prompt_tuning on two: {reason}"
    assert f"left out: {line}" in heard
    assert f"  left out: {line}" in preview.splitlines()
    assert f"Left out: {line}." in page.read_text()
    assert "Failed cells" not in page.read_text()
    rows = read_rows(plan.output / run.RESULTS)
    assert len(rows) == 7
    assert all(row.is_ok for row in rows)
    assert ("prompt_tuning", "two") not in {(row.method, row.target) for row in rows}
    lines = (plan.output / run.RESULTS).read_text().splitlines(keepends=True)
    (plan.output / run.RESULTS).write_text("".join(lines[:-1]))
    ReportPlan((plan.output,)).run(dry_run=False)  # written again it still says what is missing
    assert f"Left out: {line}." in page.read_text()
    assert "Unfinished: 6 of 7 cells have run." in page.read_text()
    with pytest.raises(SpecError, match=r"nothing to compare .*three texts"):
        run.compare(replace(plan, methods=("prompt_tuning",), targets=("two",)), backbone, say_nothing)


def test_the_saved_plan_is_resolved_and_gives_the_same_cells(plan: Plan, backbone: Backbone) -> None:
    plan = replace(plan, steps=6)
    run.compare(plan, backbone, say_nothing)
    saved = from_mapping(Plan, load_yaml(plan.output / "plan.yaml"), "plan.yaml")
    assert saved.steps is None
    assert (saved.settings.source.steps, saved.settings.target.steps) == (6, 6)
    heard = list[str]()
    run.compare(saved, backbone, heard.append)
    assert "7 cells: 7 finished before, 0 to run" in heard


def test_answers_to_single_examples_are_kept_beside_rows(plan: Plan, backbone: Backbone) -> None:
    plan = replace(plan, methods=("zero_shot", "prompt_tuning"), answers=8)
    page, file = run.compare(plan, backbone, say_nothing), plan.output / ANSWERS
    kept, rows = read_answers(file), read_rows(plan.output / run.RESULTS)
    [examples] = kept.sets.values()
    assert examples.ids == tuple(f"test{i}" for i in range(0, 24, 3))
    assert kept.cells.keys() == {row.cell for row in rows}
    assert "8 of 24 of three" in page.read_text()
    text, results = file.read_text(), plan.output / run.RESULTS
    assert all(test.text not in results.read_text() for test in TASKS["three"].split("test"))

    run.compare(plan, backbone, say_nothing)  # nothing to run, nothing to add
    assert file.read_text() == text
    *lines, last = results.read_text().splitlines(keepends=True)  # killed between the answers and the row
    results.write_text("".join(lines))
    run.compare(plan, backbone, say_nothing)
    assert file.read_text() == text  # which are not written twice
    assert read_answers(file) == kept
    assert json.loads(results.read_text().splitlines()[-1])["scores"] == json.loads(last)["scores"]


def test_all_kept_answers_give_the_score_of_their_row(plan: Plan, backbone: Backbone) -> None:
    plan = replace(plan, methods=("zero_shot", "prompt_tuning"), seeds=(13,), answers=24)
    run.compare(plan, backbone, say_nothing)
    kept = read_answers(plan.output / ANSWERS)
    for row in read_rows(plan.output / run.RESULTS):
        answers = kept.cells[row.cell]
        examples = kept.sets[answers.examples]
        right = [(examples.choices_of(i)[int(a)],) == examples.golds[i] for i, a in enumerate(answers.answers)]
        assert mean(right) == pytest.approx(row.scores["accuracy"])
        assert mean(p for p in answers.probabilities) >= 0.5


def test_without_answers_none_are_kept(plan: Plan, backbone: Backbone) -> None:
    plan = replace(plan, methods=("zero_shot",), answers=0)
    assert "Single examples" not in run.compare(plan, backbone, say_nothing).read_text()
    assert not (plan.output / ANSWERS).exists()


ARMS = ("bmtpt", "bmtpt_no_prior", "bmtpt_chains", "bmtpt_single")


def test_arms_that_differ_only_on_targets_share_a_prior(
    plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fits = execute.fit, list[str]()

    def counted(method: Any, *args: Any, **kwargs: Any) -> Any:
        fits.append(method.name)
        return real(method, *args, **kwargs)

    monkeypatch.setattr(execute, "fit", counted)
    few = {name: {"particles": 2} for name in ARMS[:3]}
    plan = replace(plan, methods=ARMS, seeds=(13,), options=few)
    tasks = run.load_tasks(plan)
    left = remaining_work(WorkerContext(plan, tasks, backbone), cells(plan, tasks, backbone), ())
    assert [w.method.name for w in left if isinstance(w, Fit)] == ["bmtpt", "bmtpt_chains", "bmtpt_single"]
    run.compare(plan, backbone, say_nothing)
    assert fits == ["bmtpt", "bmtpt_chains", "bmtpt_single"]
    rows = {r.method: r for r in read_rows(plan.output / run.RESULTS)}
    assert all(r.is_ok for r in rows.values())
    assert rows["bmtpt"].cost.source_rows == rows["bmtpt_no_prior"].cost.source_rows > 0

    wide = {**few, "bmtpt": {"particles": 2, "prior_width": (5.0,)}}
    longer = replace(SHORT, target=replace(SHORT.target, steps=3))
    run.compare(
        replace(plan, methods=ARMS[:1], options={"bmtpt": wide["bmtpt"]}, settings=longer), backbone, say_nothing
    )
    assert len(fits) == 3
    run.compare(replace(plan, methods=ARMS[:1], options={"bmtpt": {"particles": 3}}), backbone, say_nothing)
    assert fits[3:] == ["bmtpt"]


def test_a_shared_prior_gives_what_an_own_one_would(plan: Plan, backbone: Backbone, tmp_path: Path) -> None:
    options = {name: {"particles": 2} for name in ARMS[:2]}
    both = replace(plan, methods=ARMS[:2], seeds=(13,), options=options)
    alone = replace(both, methods=ARMS[1:2], options={ARMS[1]: options[ARMS[1]]}, output=tmp_path / "alone")
    run.compare(both, backbone, say_nothing)
    run.compare(alone, backbone, say_nothing)

    def result(p: Plan) -> list[tuple[object, ...]]:
        return [(r.cell, r.scores, r.curve) for r in read_rows(p.output / run.RESULTS) if r.method == ARMS[1]]

    assert result(both) == result(alone)


def test_rows_say_what_a_bank_retrieves_and_other_methods_say_nothing(plan: Plan, backbone: Backbone) -> None:
    plan = replace(plan, methods=("multitask", "tpt"), seeds=(13,), options={"tpt": {"bank_size": 6, "retrieve": 2}})
    run.compare(plan, backbone, say_nothing)
    rows = {r.method: r for r in read_rows(plan.output / run.RESULTS)}
    assert rows["multitask"].diagnostics == {}
    said = rows["tpt"].diagnostics
    assert said["prior"].keys() == {"retrieval", "parameters"}
    assert said["prior"]["retrieval"]["texts"] == 48
    assert said["prior"]["parameters"] == said["parameters"]
    width = backbone.width
    assert said["parameters"] == {"bank": 12 * width, "task": width, "retrieved": 2 * width}  # rows and keys
    found = said["retrieval"]
    assert found["tasks"] == ["one", "two", "three"]
    assert found["texts"] == 72
    assert [len(row) for row in found["map"]] == [6, 6, 6]
    assert all(sum(row) == pytest.approx(2, abs=0.01) for row in found["map"])
    assert {"words", "share", "share_by_task"} <= found["tokens"][0].keys()


def test_the_source_seed_is_one_of_the_seeds(plan: Plan) -> None:
    with pytest.raises(SpecError, match="--source-seed"):
        replace(plan, source_seed=7)


def test_rows_of_auto_have_its_leaderboard_and_all_the_best_constant_answer(plan: Plan, backbone: Backbone) -> None:
    options = {"auto": {"candidates": ["zero_shot_contextual", "linear_probe"], "folds": 2}}
    run.compare(replace(plan, methods=("zero_shot", "auto"), seeds=(13,), options=options), backbone, say_nothing)
    rows = read_rows(plan.output / run.RESULTS)
    for row in rows:
        examples = run.load_tasks(plan).targets[0].split("test")[: plan.test_limit]
        counts = Counter(example.target for example in examples)
        assert row.constant == max(counts.values()) / len(examples)
    [row] = [row for row in rows if row.method == "auto"]
    said = row.diagnostics["auto"]
    assert said["leaderboard"].keys() - {"auto"} == {"zero_shot_contextual", "linear_probe"}
    assert said["chosen"] in said["leaderboard"]
    assert "Which candidate was chosen" in (plan.output / run.PAGE).read_text()


def test_a_plan_of_the_protocol(plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Balanced test rows have keys of their own, rows know the best constant, contrasts reach the report."""
    uneven = tuple(e for i, e in enumerate(TASKS["three"].split("test")) if e.label == 0 or i < 10)
    monkeypatch.setitem(TASKS, "three", replace(TASKS["three"], examples={**TASKS["three"].examples, "test": uneven}))
    plan = replace(plan, methods=("zero_shot", "prompt_tuning", "multitask"), test_limit=16)
    sound = replace(plan, test_rows="balanced", contrasts=("multitask - prompt_tuning",))
    tasks = run.load_tasks(plan)
    assert {c.key for c in cells(plan, tasks, backbone)}.isdisjoint(c.key for c in cells(sound, tasks, backbone))
    named = replace(plan, contrasts=sound.contrasts)
    assert [c.key for c in cells(plan, tasks, backbone)] == [c.key for c in cells(named, tasks, backbone)]

    assert "power: 2 fits on 1 targets find a difference of" in run.preview(sound, backbone)
    once = run.preview(replace(sound, source_seed=13), backbone)
    assert "no difference can be shown for multitask - prompt_tuning" in once
    page = run.compare(sound, backbone, say_nothing).read_text()
    assert all((r.n_test, r.constant) == (10, 0.5) for r in read_rows(sound.output / run.RESULTS))  # five of each
    assert "multitask - prompt_<wbr>tuning" in page
    assert "Contrasts, written down first" in page
    with pytest.raises(SpecError, match=r"contrast 'spot - multitask' \(--contrasts\)"):
        replace(plan, contrasts=("spot - multitask",))
    with pytest.raises(SpecError, match=r"test limit 1 \(--test-limit\)"):
        run.preview(replace(sound, test_limit=1), backbone)


def test_power_is_measured_where_cells_have_run(plan: Plan) -> None:
    rows = [Row.from_json(r) for r in grid_rows(ks=(4,), seeds=(1, 2, 3, 4))]
    plan = replace(plan, shots=(4,), seeds=(1, 2, 3, 4), contrasts=("multitask - prompt_tuning",))
    (assumed,), (measured,) = power_lines(plan, 8, []), power_lines(plan, 8, rows)
    assert "spread by fit 0.049, assumed" in assumed  # sqrt(0.04^2 + 0.08^2 / 8)
    scores = {(r.method, r.target, r.seed): r.score for r in rows}
    targets = {r.target for r in rows}
    gaps = [
        mean(scores["multitask", t, s] - scores["prompt_tuning", t, s] for t in targets)
        for s in plan.seeds
    ]  # fmt: skip
    assert f"spread by fit {stdev(gaps):.3f}, measured on 1 contrasts" in measured

"""A comparison in pieces: what runs together, what waits for a prior, what is tried again."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.backbone.engine import text_costs
from promptprior.compare import execute, run
from promptprior.compare.executors.worker import LostWork
from promptprior.compare.plan import Cell, Plan, cells
from promptprior.compare.progress import ProgressDisplay
from promptprior.compare.schedule import PRIOR_COST, Fit, Group, Queue, Work, WorkerContext, remaining_work
from promptprior.errors import DataError, DiskError, SpecError, TrainingError
from promptprior.fit import RunControl
from promptprior.notation import Tensor
from promptprior.report.results import read_rows
from promptprior.tasks.sampling.batch import Batch
from tests.backbone.tiny import tiny
from tests.compare.test_run import SHORT, TASKS, words

MORE = {**TASKS, "four": words("four", "lmn", "OPQ"), "five": words("five", "abo", "KLM")}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(run, "load_task", lambda name, *_: MORE[name])
    monkeypatch.setattr(run, "missing_tasks", lambda *_: [])
    return Plan(
        methods=("zero_shot", "multitask"),
        sources=("one", "two"),
        targets=("three", "four", "five"),
        shots=(2,),
        seeds=(13, 21),
        settings=SHORT,
        output=tmp_path / "out",
    )


@pytest.fixture
def context(plan: Plan, backbone: Backbone) -> WorkerContext:
    return WorkerContext(plan, run.load_tasks(plan), backbone)


def wanted(context: WorkerContext) -> list[Cell]:
    return cells(context.plan, context.tasks, context.backbone)


def summary(left: list[Work]) -> list[tuple[str, int, int]]:
    return [(w.method.name, w.seed, len(w.cells) if isinstance(w, Group) else 0) for w in left]


def test_fits_stand_before_the_groups_that_need_them(context: WorkerContext) -> None:
    assert summary(remaining_work(context, wanted(context), ())) == [
        ("zero_shot", 0, 3),
        ("multitask", 13, 0),
        ("multitask", 13, 3),
        ("multitask", 21, 0),
        ("multitask", 21, 3),
    ]


@pytest.mark.parametrize(("cells_per_run", "sizes"), [(1, [1] * 7), (3, [3, 2, 2]), (4, [4, 3]), (7, [7]), (32, [7])])
def test_groups_are_even_and_bounded(context: WorkerContext, cells_per_run: int, sizes: list[int]) -> None:
    context = replace(context, plan=replace(context.plan, cells_per_run=cells_per_run))
    seven = [replace(wanted(context)[-1], key=str(i)) for i in range(7)]
    groups = [work.cells for work in remaining_work(context, seven, ()) if isinstance(work, Group)]
    assert [cell for group in groups for cell in group] == seven
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert sorted(map(len, groups), reverse=True) == sizes


def test_what_is_done_does_not_change_what_runs_together(context: WorkerContext) -> None:
    context = replace(context, plan=replace(context.plan, cells_per_run=2))
    all_cells = wanted(context)
    whole = [w for w in remaining_work(context, all_cells, ()) if isinstance(w, Group)]
    assert [len(w.cells) for w in whole] == [1, 2] * 3
    first, second = whole[1].cells
    left = [w for w in remaining_work(context, all_cells, {first.key}) if isinstance(w, Group)]
    assert [w.cells for w in left] == [w.cells for w in whole]
    assert [w.key for w in left] == [w.key for w in whole]
    assert (left[1].known, left[1].missing) == ({first.key}, [second])
    left = [w for w in remaining_work(context, all_cells, {first.key, second.key}) if isinstance(w, Group)]
    assert [w.key for w in left] == [w.key for w in [whole[0], *whole[2:]]]
    queue = Queue([], retries=1)
    assert queue.fail(whole[1]) == []
    assert [w.cells for w in queue.waiting if isinstance(w, Group)] == [(first,), (second,)]
    queue = Queue([], retries=0)
    assert queue.fail(replace(whole[1], known=frozenset({first.key}))) == [second]


def test_work_that_always_loses_its_worker_ends(context: WorkerContext) -> None:
    """What is tried again after a failure, a fit or a lone cell, is the same work: it must not live for ever."""
    for work in remaining_work(context, wanted(context)[:1], ()):
        queue, lost, failures = Queue([work], retries=1), LostWork(), 0
        while held := lost.take(queue):
            queue.running.clear()
            if lost.add(held, "exit code -9", ProgressDisplay(lambda _: None)):
                failures += 1
                queue.fail(held)
            assert lost.deaths.total() < 10
        assert failures == 2


def test_seed_0_is_a_seed(context: WorkerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = replace(context, plan=replace(context.plan, methods=("prompt_tuning",), seeds=(13, 0), sources=()))
    asked: list[int] = []

    def make_episode(target: object, k: int, seed: int, settings: object) -> None:
        asked.append(seed)
        raise DataError("enough")

    monkeypatch.setattr(execute, "make_episode", make_episode)
    for work in remaining_work(context, wanted(context), ()):
        execute.do_work(context, work, None, context.plan.output, lambda *_: None)
    assert asked == [13, 0]


def test_a_group_of_which_rows_are_missing_comes_to_the_same_rows(plan: Plan, backbone: Backbone) -> None:
    plan = replace(plan, methods=("prompt_tuning",), seeds=(13,))
    run.compare(plan, backbone, lambda _: None)
    path, heard = plan.output / run.RESULTS, list[str]()
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    prompts = {p: p.read_bytes() for p in (plan.output / "prompts").rglob("*.safetensors")}
    path.write_text(lines[0])
    run.compare(plan, backbone, heard.append)
    again = path.read_text().splitlines(keepends=True)
    assert again[0] == lines[0]
    assert [without_seconds(line) for line in again] == [without_seconds(line) for line in lines]
    assert {p: p.read_bytes() for p in prompts} == prompts
    assert "1 finished cells run again beside missing ones of their group; their results stay as they are" in heard


def without_seconds(line: str) -> str:
    return re.sub(r'"(source_)?seconds": [\d.e-]+', "", line)


def test_checkpoints_go_after_rows_and_nothing_stays(
    plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Like SIGKILL, nothing in the library catches it."""

    real, work = run.append_lines, plan.output / "work"

    def dying(path: Path, rows: list[dict[str, object]]) -> None:
        if rows[0].get("method") == "multitask":
            raise Killed
        real(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(run, "append_lines", dying)
        with pytest.raises(Killed):
            run.compare(plan, backbone, lambda _: None)
    [checkpoint] = work.glob("*/checkpoints/target/state.json")
    assert json.loads(checkpoint.read_text())["step"] == SHORT.target.steps
    for prior in (plan.output / "priors").iterdir():  # as a kill right after cost.json leaves it
        (prior / "checkpoints").mkdir()
    run.compare(plan, backbone, lambda _: None)
    assert len(read_rows(plan.output / run.RESULTS)) == 9
    names = {p.name for p in plan.output.iterdir()}
    assert names == {"plan.yaml", "results.jsonl", "answers.jsonl", "report.html", "wanted.json", "priors", "prompts"}
    assert {p.name for p in (plan.output / "priors").glob("*/*")} == {"prior", PRIOR_COST}


def test_a_full_disk_stops_the_comparison_and_trains_nothing_twice(
    plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, adapted, heard = execute.adapt, list[str](), list[str]()

    def refused(method, *args):
        adapted.append(method.name)
        if method.name == "multitask":
            raise DiskError("cannot write x: No space left on device")
        return real(method, *args)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "adapt", refused)
        with pytest.raises(DiskError, match=r"multitask, seed 13: cannot write x: .* run the same command again"):
            run.compare(plan, backbone, heard.append)
    assert adapted == ["zero_shot", "multitask"]
    assert all(row.is_ok for row in read_rows(plan.output / run.RESULTS))
    assert not any("tried again" in line for line in heard)


def test_a_disk_without_room_is_told_before_the_first_step(
    plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    monkeypatch.setattr(execute, "do_work", lambda *_: pytest.fail("work began"))
    with pytest.raises(DiskError, match=r"No space left on device; [\d,]+ bytes needed, [\d,]+ bytes free"):
        run.compare(plan, backbone, lambda _: None)
    assert not plan.output.exists()


def test_a_disk_without_room_for_an_early_report_stops_nothing(
    plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, heard = run.make_report, list[str]()

    def refused(rows, *args, **kwargs):
        if len(rows) < 9:
            raise DiskError("cannot write report.html")
        return real(rows, *args, **kwargs)

    monkeypatch.setattr(run, "make_report", refused)
    assert run.compare(plan, backbone, heard.append).exists()
    assert "no report yet: cannot write report.html" in heard


def test_seconds_of_a_prior_count_the_runs_that_were_killed(plan: Plan, backbone: Backbone) -> None:
    class Killed(BaseException):
        """Like SIGKILL, nothing in the library catches it."""

    def die(line: str) -> None:
        if "source step 3/3" in line:
            raise Killed

    plan = replace(plan, methods=("multitask",), seeds=(13,), targets=("three",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressDisplay, "every", 0.0)
        patch.setattr(RunControl.__init__, "__defaults__", (None, None, 0.0))
        with pytest.raises(Killed):
            run.compare(plan, backbone, die)
    [state] = plan.output.glob("priors/*/checkpoints/source/state.json")
    meaning = json.loads(state.read_text())
    meaning["spent"]["seconds"] += 1000
    state.write_text(json.dumps(meaning))
    run.compare(plan, backbone, lambda _: None)
    [row] = read_rows(plan.output / run.RESULTS)
    assert 1000 < row.cost.source_seconds < 1100


def test_targets_that_train_together_are_never_apart(context: WorkerContext) -> None:
    options = {"bmtpt": {"particles": 2, "joint_steps": 1}}
    plan = replace(context.plan, methods=("bmtpt",), seeds=(13,), cells_per_run=1, options=options)
    context = replace(context, plan=plan)
    all_cells = wanted(context)
    (fit, group) = remaining_work(context, all_cells, {all_cells[0].key})
    assert isinstance(fit, Fit)
    assert isinstance(group, Group)
    assert list(group.cells) == all_cells
    assert group.missing == all_cells[1:]
    queue = Queue([], retries=1)
    assert queue.fail(group) == []
    assert queue.waiting == [group]
    assert queue.fail(group) == all_cells[1:]
    fewer = replace(context, tasks=replace(context.tasks, targets=context.tasks.targets[:2]))
    assert {c.key for c in wanted(fewer)}.isdisjoint(c.key for c in all_cells)
    run.compare(plan, context.backbone, lambda _: None)
    lines = (plan.output / run.RESULTS).read_text().splitlines(keepends=True)
    (plan.output / run.RESULTS).write_text("".join(lines[:1]))
    run.compare(plan, context.backbone, lambda _: None)
    again = (plan.output / run.RESULTS).read_text().splitlines(keepends=True)
    assert again[0] == lines[0]
    assert [json.loads(line)["cell"] for line in again] == [c.key for c in all_cells]
    assert [json.loads(line)["scores"] for line in again] == [json.loads(line)["scores"] for line in lines]


def test_a_group_waits_for_its_prior(context: WorkerContext) -> None:
    queue = Queue(remaining_work(context, wanted(context), ()), retries=0)
    taken = [queue.take(), queue.take(), queue.take()]
    assert summary([w for w in taken if w]) == [("zero_shot", 0, 3), ("multitask", 13, 0), ("multitask", 21, 0)]
    assert queue.take() is None
    fit = taken[2]
    assert isinstance(fit, Fit)
    fit.folder.mkdir(parents=True)
    (fit.folder / PRIOR_COST).write_text("{}")
    assert summary([w for w in [queue.take()] if w]) == [("multitask", 21, 3)]


def test_failed_cells_come_again_one_by_one_and_no_more_often_than_said(context: WorkerContext) -> None:
    left = remaining_work(context, wanted(context), ())
    queue = Queue(left[:1], retries=2)
    group = queue.take()
    assert isinstance(group, Group)
    assert queue.fail(group) == []
    assert summary(queue.waiting) == [("zero_shot", 0, 1)] * 3
    assert sum(w.tokens for w in queue.waiting) == pytest.approx(group.tokens)
    single = queue.take()
    assert isinstance(single, Group)
    assert queue.fail(single) == []
    assert queue.waiting[-1].key == single.key
    assert queue.fail(single) == list(single.cells)
    assert Queue([], retries=0).fail(group) == list(group.cells)


def test_a_prior_that_cannot_be_fitted_takes_its_groups_with_it(context: WorkerContext) -> None:
    queue = Queue(remaining_work(context, wanted(context), ())[1:], retries=1)
    fit = queue.take()
    assert fit is not None
    assert queue.fail(fit) == []
    assert queue.waiting[-1] is fit
    queue.waiting.remove(fit)
    assert [(c.method.name, c.seed) for c in queue.fail(fit)] == [("multitask", 13)] * 3
    assert summary(queue.waiting) == [("multitask", 21, 0), ("multitask", 21, 3)]


def test_cells_per_run_changes_no_result(plan: Plan, backbone: Backbone, tmp_path: Path) -> None:
    apart = replace(plan, cells_per_run=1, output=tmp_path / "apart")
    run.compare(plan, backbone, lambda _: None)
    run.compare(apart, backbone, lambda _: None)
    one, other = (read_rows(p.output / run.RESULTS) for p in (plan, apart))
    assert [r.cell for r in one] == [r.cell for r in other]
    for a, b in zip(one, other, strict=True):
        assert (a.score, a.best_step) == (b.score, b.best_step)
        assert a.scores == pytest.approx(b.scores, rel=1e-5)


def test_memory_is_bounded_however_many_cells_adapt_together(
    plan: Plan, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = replace(plan, methods=("prompt_tuning", "multitask"), shots=(1, 2, 3, 4), seeds=(13,))
    small, sizes = replace(backbone, max_tokens=64), list[int]()
    real = Backbone.chunk_losses

    def measured(self: Backbone, prompts: Tensor, batch: Batch) -> Tensor:
        sizes.append(sum(text_costs(batch)) + prompts.shape[1] * len(batch.prompt_index.unique()))
        return real(self, prompts, batch)

    run.compare(many, backbone, lambda _: None)
    monkeypatch.setattr(Backbone, "chunk_losses", measured)
    run.compare(replace(many, output=tmp_path / "small"), small, lambda _: None)
    assert len(sizes) > 100
    assert max(sizes) <= 64
    one, other = (read_rows(folder / run.RESULTS) for folder in (many.output, tmp_path / "small"))
    assert len(one) == 2 * 4 * 3
    assert [r.scores for r in one] == [pytest.approx(r.scores, rel=1e-4) for r in other]


def test_one_bad_cell_takes_no_other_with_it(plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    real, heard = execute.adapt, list[str]()

    def failing(method, episodes, *args):
        if any(e.task.name == "four" for e in episodes) and method.name == "multitask":
            raise {13: TrainingError("planted"), 21: KeyError("slip")}[episodes[0].seed]
        return real(method, episodes, *args)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "adapt", failing)
        run.compare(plan, backbone, heard.append)
    rows = read_rows(plan.output / run.RESULTS)
    errors = {(r.target, r.seed): r.error for r in rows if not r.is_ok}
    assert errors.keys() == {("four", 13), ("four", 21)}
    assert errors["four", 13] == "TrainingError: planted"
    assert errors["four", 21].startswith("KeyError: 'slip' (test_schedule.py, line ")
    assert len(rows) == 9
    assert any("failed, to be tried again" in line for line in heard)
    assert any("failed: TrainingError: planted" in line for line in heard)


def test_a_fit_that_fails_once_is_fitted_again(plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fits = execute.fit, list[int]()

    def shaky(method, sources, backbone, settings, seed, *args):
        fits.append(seed)
        if fits.count(13) == 1 and seed == 13:
            raise TrainingError("a passing weakness")
        return real(method, sources, backbone, settings, seed, *args)

    monkeypatch.setattr(execute, "fit", shaky)
    run.compare(plan, backbone, lambda _: None)
    assert fits == [13, 21, 13]
    rows = read_rows(plan.output / run.RESULTS)
    assert len(rows) == 9
    assert all(r.is_ok for r in rows)


def test_a_fit_that_always_fails_is_told_in_the_rows_that_needed_it(
    plan: Plan, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "fit", lambda *_: 1 / 0)
    run.compare(replace(plan, retries=0), backbone, lambda _: None)
    rows = read_rows(plan.output / run.RESULTS)
    assert {r.method for r in rows if r.is_ok} == {"zero_shot"}
    assert {r.error.split(" (")[0] for r in rows if not r.is_ok} == {"ZeroDivisionError: division by zero"}
    assert len(rows) == 9


@pytest.mark.parametrize("change", [{"cells_per_run": 0}, {"retries": -1}, {"ray_cpus": 0.0}, {"ray_gpus": -0.5}])
def test_settings_of_work_that_nothing_could_run_with(plan: Plan, change: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=f"--{next(iter(change)).replace('_', '-')}"):
        replace(plan, **change)

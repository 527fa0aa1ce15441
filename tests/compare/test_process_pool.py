"""Comparisons in several processes of this machine: killed, stopped and resumed, to the same files as in one."""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from promptprior.compare import run
from promptprior.compare.executors.worker import WorkerTask
from promptprior.compare.plan import Plan
from promptprior.compare.schedule import Work, WorkerContext
from promptprior.errors import SpecError
from promptprior.report.results import read_rows
from tests.compare.grid import artifacts_of, rows_of


def several(local: Plan, output: Path) -> Plan:
    return replace(local, engine="processes", workers=2, output=output)


def at_task(monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]) -> None:
    """Call `do` with the number of each task, from 0, before the task is sent."""
    make, numbers = WorkerTask.of, iter(range(10**6))

    def of(context: WorkerContext, work: Work) -> WorkerTask:
        do(next(numbers))
        return make(context, work)

    monkeypatch.setattr(WorkerTask, "of", of)


def kill_a_worker() -> None:
    """As a machine does that has no memory left."""
    victim = multiprocessing.active_children()[0]
    victim.kill()
    victim.join()


@pytest.mark.slow
def test_killed_and_stopped_workers_lose_nothing(local: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two workers is killed at work; later Ctrl-C; then one process: files as if nothing had been."""
    plan, heard = several(local, tmp_path / "out"), list[str]()

    def disturb(number: int) -> None:
        if number == 2:
            kill_a_worker()
        if len(read_rows(plan.output / run.RESULTS)) >= 3:
            raise KeyboardInterrupt

    at_task(monkeypatch, disturb)
    with pytest.raises(KeyboardInterrupt):
        run.compare(plan, say=heard.append)
    assert not multiprocessing.active_children()
    assert not list(plan.output.glob(".promptprior-*"))
    assert sum("another takes over" in line for line in heard) == 1, heard
    assert any("workers busy" in line for line in heard)
    before = rows_of(plan)
    assert 1 <= len(before) < len(rows_of(local))
    run.compare(replace(plan, engine="local"), say=heard.append)
    assert f"{len(before)} finished before" in " ".join(heard)
    assert rows_of(plan) == rows_of(local)
    assert artifacts_of(plan) == artifacts_of(local)


@pytest.mark.slow
def test_a_piece_that_kills_three_workers_is_given_up(
    local: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(several(local, tmp_path / "out"), methods=("zero_shot",), targets=("edges",), retries=0)
    at_task(monkeypatch, lambda number: kill_a_worker())
    outcome = run.run_plan(plan, say=lambda _: None)
    assert outcome.errors == ("its worker died 3 times: exit code -9",)


@pytest.mark.slow
def test_a_worker_that_cannot_start_says_why(local: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is gone when the workers come to load it."""
    plan, folder = several(local, tmp_path / "out"), tmp_path / "model"
    folder.symlink_to(local.backbone)
    plan = replace(plan, backbone=str(folder))
    start = run.work_left

    def gone(*arguments: object) -> object:
        folder.unlink(missing_ok=True)
        return start(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "work_left", gone)
    with pytest.raises(SpecError, match=r"a worker cannot start: .*model"):
        run.compare(plan, say=lambda _: None)
    assert not multiprocessing.active_children()

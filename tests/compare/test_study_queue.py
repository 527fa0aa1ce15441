"""Plans one after the other: failures stop no other, finished ones are left alone, an interruption ends the queue."""

# ruff: noqa: F811  fixtures of another file are parameters here

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptprior.backbone import Backbone
from promptprior.cli import main
from promptprior.compare import execute, run, study_queue
from promptprior.compare.plan import Plan
from promptprior.errors import DataError, SpecError
from promptprior.interruptions import Interrupted
from promptprior.report.results import read_rows
from promptprior.tasks import Task
from tests.compare.test_run import TASKS, backbone, plan  # noqa: F401  fixtures

Queued = Callable[[], tuple[bool, list[str]]]


@pytest.fixture
def plans(plan: Plan, tmp_path: Path) -> dict[str, Plan]:
    short = replace(plan, methods=("prompt_tuning",), sources=(), seeds=(13,))
    names = {"first.yaml": "three", "second.yaml": "missing", "third.yaml": "two"}
    return {name: replace(short, targets=(task,), output=tmp_path / name[:-5]) for name, task in names.items()}


@pytest.fixture
def queue(plans: dict[str, Plan], backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Queued:
    """The queue of these plans, of which the second names a task that is not there; and what it says."""

    def load_task(name: str, *_: object) -> Task:
        if name == "missing":
            raise DataError("no task 'missing'")
        return TASKS[name]

    monkeypatch.setattr(run, "load_task", load_task)
    monkeypatch.setattr(study_queue, "load_backbone", lambda _: backbone)
    monkeypatch.setattr(os, "nice", lambda _: 0)  # the other tests go on at their own priority

    def run_once() -> tuple[bool, list[str]]:
        heard: list[str] = []
        return study_queue.run_queue(plans, say=heard.append), heard

    return run_once


def test_a_plan_that_fails_stops_no_other_and_finished_ones_are_skipped(
    queue: Queued, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, heard = queue()
    assert not done
    assert "second.yaml: cannot run: no task 'missing'" in heard
    assert f"plan 2 of 2, third.yaml: results in {plans['third.yaml'].output}" in heard
    assert heard[-1] == "1 of 3 plans failed (second.yaml); the same command tries them again"
    assert [len(read_rows(plan.output / run.RESULTS)) for plan in plans.values()] == [1, 0, 1]
    assert (plans["third.yaml"].output / run.PAGE).exists()

    monkeypatch.setattr(execute, "adapt", lambda *_, **__: pytest.fail("a finished plan was run again"))
    del plans["second.yaml"]
    done, heard = queue()
    assert done
    assert heard == ["plan 1 of 2, first.yaml: finished before", "plan 2 of 2, third.yaml: finished before"]


def test_failed_cells_fail_their_plan_and_are_tried_again(
    queue: Queued, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def adapt(method: Any, episodes: Any, *rest: Any) -> Any:
        if episodes[0].task.name == "three":
            raise ValueError("not today")
        return real(method, episodes, *rest)

    del plans["second.yaml"]
    real = execute.adapt
    with monkeypatch.context() as patch:
        patch.setattr(execute, "adapt", adapt)
        assert not queue()[0]
    assert [row.is_ok for plan in plans.values() for row in read_rows(plan.output / run.RESULTS)] == [False, True]
    done, heard = queue()
    assert done
    assert "plan 2 of 2, third.yaml: finished before" in heard


def test_an_interruption_ends_the_queue(queue: Queued, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(execute, "adapt", interrupt)
        with pytest.raises(Interrupted):
            queue()
    assert not any(read_rows(plan.output / run.RESULTS) for plan in plans.values())
    del plans["second.yaml"]
    assert queue()[0]


def test_progress_is_that_of_all_plans(
    queue: Queued, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shares: list[float] = []
    display = study_queue.ProgressDisplay

    class Recorded(display):  # type: ignore[valid-type, misc]
        def tell(self, text: str, stage_share: float) -> None:
            shares.append((self.done + self.within) / self.total)

    monkeypatch.setattr(study_queue, "ProgressDisplay", Recorded)
    del plans["second.yaml"]
    assert queue()[0]
    assert shares == sorted(shares)
    assert shares[0] < 0.5 < shares[-1] <= 1


def test_two_plans_of_one_folder_are_refused(queue: Queued, plans: dict[str, Plan]) -> None:
    plans["third.yaml"] = replace(plans["third.yaml"], output=plans["first.yaml"].output)
    with pytest.raises(SpecError, match=r"first.yaml and third.yaml both write to .*first: give each its own"):
        queue()


def test_a_wrong_plan_is_said_before_any_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(f"methods: [prompt_tuning]\ntargets: [greek_or_latin]\noutput: {tmp_path / 'a'}\n")
    bad.write_text("methods: [prompt_tuning]\ntargets: [greek_or_latin]\nsweep: {lenght: [10, 20]}\n")
    assert main(["queue", str(good), str(bad)]) == 2
    assert "unknown setting 'lenght'; did you mean 'length'" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main(["queue", "--shots", "4"]) == 2
    assert "queue needs plan files" in capsys.readouterr().err

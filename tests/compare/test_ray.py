"""Comparisons on a Ray cluster of two machines: killed, stopped and resumed, to the same files as in one process."""

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptprior.backbone import load
from promptprior.compare import execute, run
from promptprior.compare.executors import ray_driver
from promptprior.compare.executors.ray_driver import worker_shares
from promptprior.compare.executors.worker import WorkerHandle
from promptprior.compare.plan import Plan, cells
from promptprior.compare.progress import ProgressDisplay
from promptprior.compare.schedule import Work, WorkerContext, remaining_work
from promptprior.errors import SpecError
from promptprior.report.results import read_rows
from tests.compare.fake_ray import FakeRay, RayError
from tests.compare.grid import artifacts_of, rows_of


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines with one CPU each, as far as Ray can tell, without the processes that only tell people things."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'promptprior[ray]'")
    from ray.cluster_utils import Cluster

    few = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray._private.services, "get_node", patient(ray._private.services.get_node))
        made = Cluster(initialize_head=True, head_node_args={**few, "no_monitor": True})
        made.add_node(**few)
    yield made
    made.shutdown()


def patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """The same, but for two minutes: Ray's own half a minute is short where other work has all the cores."""

    def got(*arguments: Any) -> Any:
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            try:
                return get_node(*arguments)
            except RuntimeError:
                time.sleep(0.5)
        return get_node(*arguments)

    return got


def on(cluster: Any, plan: Plan, name: str) -> Plan:
    return replace(plan, engine="ray", address=cluster.address, output=plan.output.with_name(name))


@pytest.mark.slow
def test_stopped_on_a_cluster_and_gone_on_with_in_one_process(
    cluster: Any, local: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, start, heard = on(cluster, local, "stopped"), ray_driver.start_work, list[str]()

    def stop(context: WorkerContext, worker: WorkerHandle, work: Work) -> None:
        if (plan.output / run.RESULTS).exists():  # a row has come back, and there is more to do
            raise KeyboardInterrupt
        start(context, worker, work)

    monkeypatch.setattr(ray_driver, "start_work", stop)
    with pytest.raises(KeyboardInterrupt):
        run.compare(plan, say=heard.append)
    before = rows_of(plan)
    assert 1 <= len(before) < len(rows_of(local))
    assert not list(plan.output.glob(".promptprior-*"))
    run.compare(replace(plan, engine="local"), say=heard.append)
    assert f"{len(before)} finished before" in " ".join(heard)
    assert rows_of(plan) == rows_of(local)
    assert artifacts_of(plan) == artifacts_of(local)


def kill(cluster: Any, node: Any) -> None:
    """End a machine as a loss of power would: workers first, for they live on a while without their raylet."""
    for process in node.all_processes["raylet"]:
        for child in Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.slow
def test_a_killed_machine_loses_no_finished_cell_and_none_is_run_twice(
    cluster: Any, local: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, start, victims = on(cluster, local, "killed"), ray_driver.start_work, list(cluster.worker_nodes)
    heard, finished, asked, busy = list[str](), list[set[str]](), list[str](), list[WorkerHandle]()

    def killing(context: WorkerContext, worker: WorkerHandle, work: Work) -> None:
        start(context, worker, work)
        asked.append(work.key)
        busy[:] = [other for other in busy if other.work is not None and other is not worker] + [worker]
        if victims and len(busy) == 2 and (plan.output / run.RESULTS).exists():
            finished.append(set(rows_of(plan)))
            kill(cluster, victims.pop())

    monkeypatch.setattr(ray_driver, "start_work", killing)
    page = run.compare(plan, say=heard.append)
    assert finished, "the machine was never killed at work"
    assert rows_of(plan) == rows_of(local)
    assert artifacts_of(plan) == artifacts_of(local)
    assert page.exists()
    taken_over = [line for line in heard if "another takes over" in line]
    assert len(taken_over) == 1
    assert len(asked) == len(set(asked)) + 1  # only what the machine held was asked for again
    assert any("workers busy" in line and "left" in line for line in heard)
    run.compare(plan, say=heard.append)
    assert f"{len(rows_of(local))} finished before, 0 to run" in " ".join(heard)


def machine(cpus: float, gpus: float = 0, is_alive: bool = True) -> dict[str, Any]:
    """A machine as Ray lists it."""
    return {"Alive": is_alive, "Resources": {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    """A cluster of two machines that is played in this process."""

    def play(**changes: Any) -> FakeRay:
        fake = FakeRay(**{"machines": [machine(1), machine(1)], **changes})
        monkeypatch.setitem(sys.modules, "ray", fake)
        return fake

    return play


def far(plan: Plan, tmp_path: Path, **changes: Any) -> Plan:
    return replace(plan, engine="ray", output=tmp_path / "far", **changes)


def test_played_workers_give_the_same_files(played: Callable[..., FakeRay], local: Plan, tmp_path: Path) -> None:
    fake, plan, on_sigterm = played(), far(local, tmp_path), signal.getsignal(signal.SIGTERM)
    run.compare(plan, say=lambda _: None)
    assert signal.getsignal(signal.SIGTERM) is on_sigterm
    assert rows_of(plan) == rows_of(local)
    assert artifacts_of(plan) == artifacts_of(local)
    assert len(fake.spawned) == 2  # each loads the backbone, once
    assert fake.killed == fake.spawned
    assert fake.is_shut_down


def test_work_of_dead_workers_is_done_by_others(
    played: Callable[..., FakeRay], local: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, plan, heard = played(deaths=(1, 2, 7)), far(local, tmp_path), list[str]()
    monkeypatch.setattr(ray_driver, "POLL", 0.0)  # on a fast machine all is done before the next look at the cluster
    run.compare(plan, say=heard.append)
    assert rows_of(plan) == rows_of(local)
    assert artifacts_of(plan) == artifacts_of(local)
    assert len(fake.spawned) == 2 + 3
    assert fake.works == 3 + len(works_of(local))
    assert sum("another takes over" in line for line in heard) == 3


def works_of(plan: Plan) -> list[Work]:
    """All pieces of a plan, as if nothing were done."""
    fresh = replace(plan, output=plan.output / "nowhere")
    tasks, backbone = run.load_tasks(plan), load(plan.backbone, plan.dtype, plan.device)
    return remaining_work(WorkerContext(fresh, tasks, backbone), cells(fresh, tasks, backbone), ())


def test_work_that_kills_its_workers_is_given_up_and_the_rest_goes_on(
    played: Callable[..., FakeRay], local: Plan, tmp_path: Path
) -> None:
    plan = far(local, tmp_path, methods=("prompt_tuning",), retries=0)
    played(machines=[machine(1)], deaths=(1, 2, 3))
    run.compare(plan, say=lambda _: None)
    rows = read_rows(plan.output / run.RESULTS)
    assert [row.error for row in rows if not row.is_ok] == ["its worker died 3 times: The actor died unexpectedly."]
    assert len(rows) == 4


def test_a_machine_that_joins_is_used(played: Callable[..., FakeRay], local: Plan, tmp_path: Path) -> None:
    fake = played(machines=[machine(1)])
    plan = far(local, tmp_path)

    def join(line: str) -> None:
        if "1 of 1 workers busy" in line and len(fake.machines) == 1:
            fake.machines.append(machine(2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_driver, "POLL", 0.0)
        patch.setattr(ProgressDisplay, "every", 0.0)
        run.compare(plan, say=join)
    assert len(fake.spawned) == 3
    assert rows_of(plan) == rows_of(local)


def test_without_a_shared_folder_workers_keep_checkpoints_of_their_own(
    played: Callable[..., FakeRay], local: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played()
    plan, seen = far(local, tmp_path, methods=("multitask",)), list[Path]()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(ray_driver, "write_text", lambda *_: None)  # so no worker sees the token
    real = execute.adapt

    def watched(*arguments: Any) -> Any:
        seen.append(arguments[5].folder)
        return real(*arguments)

    monkeypatch.setattr(execute, "adapt", watched)
    run.compare(plan, say=lambda _: None)
    assert all(folder.is_relative_to(tmp_path / "elsewhere") for folder in seen)
    expected = {cell: row for cell, row in rows_of(local).items() if json.loads(row)["method"] == "multitask"}
    assert rows_of(plan) == expected
    assert len(list(plan.output.glob("priors/*/prior"))) == 2


def test_a_worker_with_another_backbone_stops_the_run(
    played: Callable[..., FakeRay], local: Plan, tmp_path: Path
) -> None:
    fake, plan = played(), far(local, tmp_path)
    other = replace(load(plan.backbone, "float32", "cpu"))
    card = replace(other.card, fingerprint="0" * 16)
    with pytest.raises(SpecError, match=r"a worker cannot start: .*the weights are not the same"):
        run.compare(plan, replace(other, frozen=replace(other.frozen, card=card)), lambda _: None)
    assert fake.is_shut_down
    assert not (plan.output / run.RESULTS).exists()


def test_room_is_what_fits_on_each_machine() -> None:
    assert worker_shares([machine(4), machine(1), machine(8, is_alive=False)], 1, 0) == [0.25] * 4 + [1.0]
    assert worker_shares([machine(3)], 2, 0) == [1.0]
    assert worker_shares([machine(16, 2)], 1, 0.5) == [0.5] * 4
    assert worker_shares([machine(2, 4), machine(8)], 1, 1) == [1.0] * 2
    assert worker_shares([machine(1)], 2, 0) == []


def test_a_worker_that_fits_nowhere_is_said_at_once(
    played: Callable[..., FakeRay], local: Plan, tmp_path: Path
) -> None:
    played()
    plan = far(local, tmp_path, ray_gpus=1.0)
    with pytest.raises(
        SpecError, match=r"needs 1 CPU and 1 GPU of one machine \(--ray-cpus, --ray-gpus\); the cluster"
    ):
        run.compare(plan, say=lambda _: None)
    assert not (plan.output / run.RESULTS).exists()


def test_without_ray_one_line_says_what_to_install(
    local: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match=r"pip install 'promptprior\[ray\]'"):
        run.compare(far(local, tmp_path), say=lambda _: None)


def test_a_token_that_is_missing_is_said(
    played: Callable[..., FakeRay], local: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's error of authentication is none of Python's; where the token is wrong, it only says that it failed."""
    fake, failure = played(), [RayError("no authentication token was found"), RuntimeError("Failed to connect")]

    def refuse(**_: object) -> None:
        raise failure.pop(0)

    monkeypatch.setattr(fake, "init", refuse, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        plan = far(local, tmp_path, address=f"127.0.0.1:{server.getsockname()[1]}")
        for message in (
            "no authentication token was found",
            "Failed to connect; if it asks for a token: RAY_AUTH_MODE",
        ):
            with pytest.raises(SpecError, match=message):
                run.compare(plan, say=lambda _: None)
    assert not failure


def test_a_cluster_that_is_not_there_is_said(
    played: Callable[..., FakeRay], local: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(played(), "init", refuse, raising=False)
    with pytest.raises(SpecError, match=r"no Ray cluster could be reached at auto \(--address\): nobody there"):
        run.compare(far(local, tmp_path, address="auto"), say=lambda _: None)

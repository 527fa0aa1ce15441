"""The engine that works in many processes on many machines, by Ray.

Workers are Ray actors: each loads the backbone once and does one piece of work at a time. A worker that dies, or whose
machine does, takes no result with it: finished work has come back, and the work it held is given to another.
"""

import logging
import os
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from promptprior.artifacts.artifact import versions
from promptprior.compare.executors.executor import Failure, Result
from promptprior.compare.executors.ray_worker import Worker, WorkerInit, ordered
from promptprior.compare.plan import Plan
from promptprior.compare.progress import Progress
from promptprior.compare.schedule import Fit, Work, WorkerContext, work_folder
from promptprior.compare.store import kept_prior
from promptprior.errors import SpecError
from promptprior.files import write_text

POLL = 2.0  # seconds between two looks at workers and machines
LOSSES = 3  # times that work may lose its worker before it counts as failed


def connected(address: str | None) -> tuple[Any, bool]:
    """Ray, connected to the cluster at an address (by default one of this machine), and whether it was so before.

    Raises SpecError when Ray is not installed or there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that starts here reports to nobody
    try:
        import ray
    except ImportError as error:
        raise SpecError(f"--engine ray needs a package: pip install 'promptprior[ray]' ({error})") from error
    if ray.is_initialized():
        return ray, True
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SpecError(
            f"no Ray cluster could be reached at {address or 'this machine'} (--address): {error}"
        ) from error
    return ray, False


@dataclass(eq=False)
class WorkerHandle:
    """A worker as the driver sees it: its actor, what it was last asked for, and the work it holds."""

    actor: Any
    asked: Any
    is_ready: bool = False
    work: Work | None = None
    said: tuple[str, float] = ("starting", 0.0)


@dataclass
class RayEngine:
    """As many workers as the cluster has room for, at most `most`; more when machines join."""

    worker_context: WorkerContext
    progress: Progress
    most: int
    ray: Any
    was_connected: bool
    desk: Any
    token: Path
    seats: list[WorkerHandle] = field(default_factory=list)
    lost: list[Work] = field(default_factory=list)
    losses: Counter[str] = field(default_factory=Counter)
    looked: float = -1e9

    @property
    def running(self) -> list[Work]:
        """Work that has been started and is not over."""
        return [*(seat.work for seat in self.seats if seat.work is not None), *self.lost]

    @property
    def has_room(self) -> bool:
        """Whether a worker is idle, and no work waits that lost its own."""
        return not self.lost and any(seat.is_ready and seat.work is None for seat in self.seats)

    def start(self, work: Work) -> None:
        """Give work to an idle worker."""
        seat = next(s for s in self.seats if s.is_ready and s.work is None)
        output = self.worker_context.plan.output.absolute()
        prior = None if isinstance(work, Fit) else work.prior
        fitted = kept_prior(prior, self.worker_context.backbone.card) if prior is not None else None
        order = ordered(work, work_folder(output, work).absolute())
        seat.work, seat.said = work, ("starting", 0.0)
        seat.asked = seat.actor.do.remote(order, fitted)

    def wait(self) -> tuple[Work, Result] | None:
        """Wait for work that is over; None when something else has happened."""
        self.look_around()
        asked = [seat.asked for seat in self.seats if not seat.is_ready or seat.work is not None]
        if not asked:
            time.sleep(POLL)
            return None
        over, _ = self.ray.wait(asked, num_returns=1, timeout=POLL)
        return self.taken(next(s for s in self.seats if s.asked == over[0])) if over else None

    def taken(self, seat: WorkerHandle) -> tuple[Work, Result] | None:
        """What a worker has answered: that it is ready, a result, or nothing ever again."""
        work = seat.work
        try:
            answer = self.ray.get(seat.asked)
        except self.ray.exceptions.RayActorError as error:
            return self.on_worker_death(seat, str(error))
        if not seat.is_ready and answer:
            raise SpecError(f"a worker cannot start: {answer}")
        seat.is_ready, seat.work = True, None
        return (work, answer) if work is not None else None

    def on_worker_death(self, seat: WorkerHandle, why: str) -> tuple[Work, Result] | None:
        """Let a dead worker go, and have its work done by another; work that kills its workers has failed."""
        self.seats.remove(seat)
        if seat.work is None:
            return None
        self.losses[seat.work.key] += 1
        if self.losses[seat.work.key] >= LOSSES:
            return seat.work, Failure(f"its worker died {LOSSES} times: {why.strip().splitlines()[0]}")
        self.progress.tell(f"{seat.work.label} · its worker is lost, another takes over", force=True)
        self.lost.append(seat.work)
        return None

    def look_around(self) -> None:
        """Now and then: hear what workers say, hire for room that is free, and give lost work to idle workers."""
        if time.monotonic() - self.looked >= POLL:
            self.looked = time.monotonic()
            self.spawn()
            self.listen()
        idle = [seat for seat in self.seats if seat.is_ready and seat.work is None]
        for _ in idle:
            if self.lost:
                self.start(self.lost.pop(0))

    def spawn(self) -> None:
        """Start workers for the room that the cluster has now."""
        plan = self.worker_context.plan
        shares = room(self.ray.nodes(), plan.ray_cpus, plan.ray_gpus)
        for share in shares[len(self.seats) : self.most]:
            make = self.ray.remote(Worker).options(
                num_cpus=plan.ray_cpus, num_gpus=plan.ray_gpus, max_restarts=0, max_concurrency=2
            )
            actor = make.remote(self.desk, share)
            self.seats.append(WorkerHandle(actor, actor.sit.remote()))

    def listen(self) -> None:
        """Ask all busy workers how far they are, and tell progress."""
        busy = [seat for seat in self.seats if seat.is_ready and seat.work is not None]
        asked = {seat.actor.look.remote(): seat for seat in busy}
        heard, _ = self.ray.wait(list(asked), num_returns=len(asked), timeout=POLL) if asked else ([], [])
        for answer in heard:
            try:
                asked[answer].said = self.ray.get(answer)
            except self.ray.exceptions.RayError:
                continue  # its death is found where its result is waited for
        self.progress.within = sum(s.said[1] * s.work.tokens for s in busy if s.work is not None)
        told = ", ".join(f"{s.work.label} · {s.said[0]}" for s in busy[:1] if s.work is not None)
        self.progress.tell(f"{len(busy)} of {len(self.seats)} workers busy · {told or 'waiting for workers'}")

    def close(self) -> None:
        """Stop all workers, whatever they do, and leave the cluster as it was found."""
        self.token.unlink(missing_ok=True)
        for seat in self.seats:
            self.ray.kill(seat.actor)
        if not self.was_connected:
            self.ray.shutdown()


def ray_engine(worker_context: WorkerContext, progress: Progress, most: int) -> RayEngine:
    """An engine on the cluster that the plan names.

    Raises SpecError when there is none, or when a worker would fit on none of its machines.
    """
    plan, card = findable(worker_context.plan), worker_context.backbone.card
    ray, was_connected = connected(plan.address)
    nodes = ray.nodes()
    if not room(nodes, plan.ray_cpus, plan.ray_gpus):
        raise SpecError(
            f"a worker needs {plan.ray_cpus:g} CPU and {plan.ray_gpus:g} GPU of one machine (--ray-cpus, --ray-gpus); "
            f"the cluster has {listed(nodes)}"
        )
    if not plan.ray_gpus and any(node["Resources"].get("GPU") for node in nodes if node["Alive"]):
        progress.say("the cluster has GPUs and none is asked for: workers use CPUs (--ray-gpus 1 for one GPU each)")
    token = plan.output.absolute() / f".promptprior-{uuid.uuid4().hex}"
    write_text(token, "")
    dtype = str(worker_context.backbone.frozen.dtype).removeprefix("torch.")
    desk = WorkerInit(plan, worker_context.tasks, dtype, card, str(versions()["promptprior"]), token)
    return RayEngine(worker_context, progress, most, ray, was_connected, ray.put(desk), token)


def findable(plan: Plan) -> Plan:
    """The plan with paths that mean the same in every process of a machine."""
    folder = Path(plan.backbone).absolute()
    logs = plan.tensorboard.absolute() if plan.tensorboard else None
    return replace(plan, backbone=str(folder) if folder.exists() else plan.backbone, tensorboard=logs)


def room(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> list[float]:
    """A share of its machine for each worker that fits into a cluster."""
    shares = []
    for node in nodes:
        has = node["Resources"] if node["Alive"] else {}
        fits = min(int(has.get(name, 0) / need + 1e-6) for name, need in (("CPU", cpus), ("GPU", gpus)) if need)
        shares += [1 / max(1, fits if not gpus else round(1 / gpus))] * fits
    return shares


def listed(nodes: list[dict[str, Any]]) -> str:
    """The machines of a cluster, for an error."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return "; ".join(f"{r.get('CPU', 0):g} CPU and {r.get('GPU', 0):g} GPU" for r in alive) or "no machine"

"""The executor that works in many processes on many machines, by Ray.

Workers are Ray actors: each loads the backbone once and does one piece of work at a time. A worker that dies, or whose
machine does, takes no result with it: finished work has come back, and the work it held is given to another.
"""

import logging
import os
import socket
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

from promptprior.compare.execute import Result, load_prior
from promptprior.compare.executors.worker import LostWork, Worker, WorkerHandle, WorkerInit, WorkerTask, show_busy
from promptprior.compare.progress import ProgressDisplay
from promptprior.compare.schedule import Group, Queue, Work, WorkerContext
from promptprior.errors import SpecError
from promptprior.files import write_text
from promptprior.interruptions import keeping_handlers

CONNECT_SECONDS = 10.0  # that the head of a cluster may take to answer
POLL = 2.0  # seconds between two looks at workers and machines


def worker_shares(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> list[float]:
    """For each worker that fits into a cluster, the share of its machine's memory that it may use."""
    shares = []
    for node in nodes:
        resources = node["Resources"] if node["Alive"] else {}
        needs = [(name, need) for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
        fits = min(int(resources.get(name, 0) / need + 1e-6) for name, need in needs)
        shares += [1 / max(1, round(1 / gpus) if gpus else fits)] * fits
    return shares


@contextmanager
def ray_connection(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at an address, or to one of this machine; afterwards it is as it was before.

    Raises SpecError when Ray is not installed, and when there is no cluster: at once where nothing listens, and within
    half a minute where something else does, or a cluster that asks for another token.
    """
    where = address or os.environ.get("RAY_ADDRESS", "")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that starts here reports to nobody
    if where:  # by themselves these are minutes; a cluster that starts here needs them
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "10")
    try:
        import ray
    except ImportError as error:
        raise SpecError(f"--engine ray needs a package: pip install 'promptprior[ray]' ({error})") from error
    if ray.is_initialized():
        yield ray
        return
    host, colon, port = where.removeprefix("ray://").rpartition(":")
    hint = ""
    try:
        if colon and port.isdecimal():  # neither auto nor local
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
            hint = "; if it asks for a token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE"
        with keeping_handlers():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        there = where or "this machine"
        raise SpecError(f"no Ray cluster could be reached at {there} (--address): {error}{hint}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def run_on_ray(context: WorkerContext, queue: Queue, progress: ProgressDisplay) -> Generator[tuple[Work, Result]]:
    """Do all work of a queue with as many workers as the cluster has room for; more when machines join.

    Raises SpecError when there is no cluster, when a worker would fit on none of its machines, or cannot start.
    """
    plan = context.plan
    with ray_connection(plan.address) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not worker_shares(ray.nodes(), plan.ray_cpus, plan.ray_gpus):
            sizes = [f"{m.get('CPU', 0):g} CPU and {m.get('GPU', 0):g} GPU" for m in machines]
            raise SpecError(
                f"a worker needs {plan.ray_cpus:g} CPU and {plan.ray_gpus:g} GPU of one machine (--ray-cpus, "
                f"--ray-gpus); the cluster has {'; '.join(sizes) or 'no machine'}"
            )
        if not plan.ray_gpus and any(m.get("GPU") for m in machines):
            progress.say("the cluster has GPUs and none is asked for: workers use CPUs (--ray-gpus 1 for one GPU each)")
        token = plan.output.absolute() / f".promptprior-{uuid.uuid4().hex}"
        write_text(token, "")
        device = plan.device or ("cuda" if plan.ray_gpus else "cpu")
        init = WorkerInit.of(context, token, device, max(1, int(plan.ray_cpus)))
        try:
            yield from _run_on_cluster(ray, ray.put(init), context, queue, progress)
        finally:
            token.unlink(missing_ok=True)


def _run_on_cluster(
    ray: Any, init: Any, context: WorkerContext, queue: Queue, progress: ProgressDisplay
) -> Generator[tuple[Work, Result]]:
    plan = context.plan
    workers: list[WorkerHandle] = []
    max_workers, last_poll = len(queue.waiting), -1e9
    lost = LostWork()
    try:
        while queue.waiting or queue.running:
            for worker in [w for w in workers if w.is_ready and w.work is None]:
                if work := lost.take(queue):
                    start_work(context, worker, work)
            if time.monotonic() - last_poll >= POLL:
                last_poll = time.monotonic()
                shares = worker_shares(ray.nodes(), plan.ray_cpus, plan.ray_gpus)
                for share in shares[len(workers) : max_workers]:  # room for more workers, a new machine maybe
                    actor_class = ray.remote(Worker).options(
                        num_cpus=plan.ray_cpus, num_gpus=plan.ray_gpus, max_restarts=0, max_concurrency=2
                    )
                    actor = actor_class.remote(init, share)
                    workers.append(WorkerHandle(actor, actor.setup.remote()))
                show_progress(ray, workers, progress)
            owed = [worker.answer for worker in workers if not worker.is_ready or worker.work is not None]
            answered, _ = ray.wait(owed, num_returns=1, timeout=POLL) if owed else ([], [])
            if not answered:
                time.sleep(0 if owed else POLL)
                continue
            worker = next(worker for worker in workers if worker.answer == answered[0])
            held = worker.work
            try:
                answer = ray.get(worker.answer)  # of setup what is wrong, of work its result
            except ray.exceptions.RayActorError as error:
                workers.remove(worker)
                reason = str(error).strip().splitlines()[0]
                if held is not None and (failure := lost.add(held, reason, progress)):
                    yield held, failure
                continue
            if not worker.is_ready and answer:
                raise SpecError(f"a worker cannot start: {answer}")
            worker.is_ready, worker.work = True, None
            if held is not None:
                yield held, answer
    finally:  # leave the cluster as it was
        for worker in workers:
            ray.kill(worker.actor)


def start_work(context: WorkerContext, worker: WorkerHandle, work: Work) -> None:
    """Give work to an idle worker, with the prior that it starts from."""
    fitted = load_prior(work.prior if isinstance(work, Group) else None, context.backbone.card)
    worker.work, worker.progress = work, ("starting", 0.0)
    worker.answer = worker.actor.do.remote(WorkerTask.of(context, work), fitted)


def show_progress(ray: Any, workers: list[WorkerHandle], progress: ProgressDisplay) -> None:
    """Ask all busy workers how far they are, and show it."""
    busy = {worker.actor.progress.remote(): worker for worker in workers if worker.is_ready and worker.work}
    answers, _ = ray.wait(list(busy), num_returns=len(busy), timeout=POLL) if busy else ([], [])
    for answer in answers:
        try:
            busy[answer].progress = ray.get(answer)
        except ray.exceptions.RayError:
            continue  # its death is noticed where its result is waited for
    show_busy(workers, progress)

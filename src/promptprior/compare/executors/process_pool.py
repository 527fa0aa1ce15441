"""The executor that works in several processes of this machine, which share its cores, its memory and its GPU.

A step of a small model leaves most of a GPU idle while the host prepares the next one; several processes fill it.
Each loads the backbone once and does one piece of work at a time. One that dies takes no result with it: the piece it
held is given to another.
"""

import os
import pickle
import signal
import time
import uuid
from collections.abc import Generator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

import torch

from promptprior.compare.execute import Result, load_prior
from promptprior.compare.executors.worker import LostWork, Worker, WorkerHandle, WorkerInit, WorkerTask, show_busy
from promptprior.compare.progress import ProgressDisplay
from promptprior.compare.schedule import Group, Queue, Work, WorkerContext
from promptprior.errors import SpecError
from promptprior.files import write_text
from promptprior.interruptions import Interrupted, interruptible

POLL = 1.0  # seconds between two words of a worker on how far it is
PATIENCE = 30.0  # seconds that a worker may take to write its checkpoint before it is killed


def run_in_processes(context: WorkerContext, queue: Queue, progress: ProgressDisplay) -> Generator[tuple[Work, Result]]:
    """Do all work of a queue with `plan.workers` processes, or fewer where there are fewer pieces.

    Raises SpecError when a process cannot start.
    """
    plan, spawn = context.plan, get_context("spawn")  # a fork would share the driver's GPU and threads
    token = plan.output.absolute() / f".promptprior-{uuid.uuid4().hex}"
    write_text(token, "")
    count, lost = min(plan.workers, len(queue.waiting)), LostWork()
    threads = max(1, len(os.sched_getaffinity(0)) // count) if hasattr(os, "sched_getaffinity") else 1
    init = WorkerInit.of(context, token, str(context.backbone.frozen.device), threads)
    workers: list[WorkerHandle] = []
    try:
        while queue.waiting or queue.running:
            while len(workers) < count:
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=answer_tasks, args=(init, 1 / count, theirs), daemon=True)
                process.start()
                theirs.close()  # so that its end is seen here
                workers.append(WorkerHandle(process, ours))
            for worker in workers:
                if worker.is_ready and worker.work is None and (work := lost.take(queue)):
                    fitted = load_prior(work.prior if isinstance(work, Group) else None, context.backbone.card)
                    worker.work, worker.progress = work, ("starting", 0.0)
                    with suppress(OSError):  # it died: seen below
                        worker.answer.send_bytes(pickle.dumps((WorkerTask.of(context, work), fitted)))
            show_busy(workers, progress)
            for pipe in wait([worker.answer for worker in workers], POLL):
                [worker] = [worker for worker in workers if worker.answer is pipe]
                held = worker.work
                try:
                    kind, answer = pickle.loads(worker.answer.recv_bytes())
                except (EOFError, OSError):
                    workers.remove(worker)
                    worker.actor.join()
                    reason = f"exit code {worker.actor.exitcode}"
                    if not worker.is_ready:
                        raise SpecError(f"a worker cannot start: {reason} (--workers {plan.workers})") from None
                    if held is not None and (failure := lost.add(held, reason, progress)):
                        yield held, failure
                    continue
                if kind == "progress":
                    worker.progress = answer
                elif kind == "ready":
                    if answer:
                        raise SpecError(f"a worker cannot start: {answer}")
                    worker.is_ready = True
                elif held is not None:
                    worker.work = None
                    yield held, answer
    finally:
        for worker in workers:
            worker.actor.terminate()  # it writes its checkpoint
        for worker in workers:
            worker.actor.join(PATIENCE)
            worker.actor.kill()
        token.unlink(missing_ok=True)


def answer_tasks(init: WorkerInit, memory_share: float, pipe: Connection) -> None:
    """What a worker process does: say what is wrong with it, or nothing, then answer one task after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the driver ends its workers
    said = 0.0

    def tell(text: str, share: float) -> None:
        nonlocal said
        if time.monotonic() - said >= POLL:
            said = time.monotonic()
            pipe.send_bytes(pickle.dumps(("progress", (text, share))))

    with suppress(EOFError, BrokenPipeError, Interrupted), interruptible(owns_process=True):
        torch.set_num_threads(init.threads)
        if torch.device(init.device).type == "cuda":  # what one keeps for later no other can have
            torch.cuda.set_per_process_memory_fraction(memory_share, init.device)
        worker = Worker(init, memory_share, tell)
        pipe.send_bytes(pickle.dumps(("ready", worker.setup())))
        while True:
            task, fitted = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps(("result", worker.do(task, fitted))))

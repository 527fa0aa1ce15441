"""A worker process of an executor: loads the backbone once, then does one piece of work at a time."""

import socket
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from promptprior.artifacts.artifact import versions
from promptprior.backbone import BackboneCard
from promptprior.compare.execute import Failure, FittedPrior, OnProgress, Result, do_work
from promptprior.compare.plan import Cell, Plan, Tasks, cells, load_backbone
from promptprior.compare.progress import ProgressDisplay
from promptprior.compare.schedule import Group, Queue, Work, WorkerContext, work_folder
from promptprior.errors import PromptpriorError, SpecError
from promptprior.files import remove_folder
from promptprior.watch import mlflow_uri

MAX_DEATHS = 3  # times that work may lose its worker before it counts as failed


@dataclass(frozen=True)
class WorkerInit:
    """What a worker gets once. `dtype`, `card` and `version` are those of the driver, the process that the user
    started; `device` and CPU `threads` are the worker's own; `token` is a file that stands at the driver: a worker that
    sees it shares the output folder."""

    plan: Plan
    tasks: Tasks
    dtype: str
    card: BackboneCard
    version: str
    token: Path
    device: str
    threads: int

    @classmethod
    def of(cls, context: WorkerContext, token: Path, device: str, threads: int) -> "WorkerInit":
        """What the workers of a driver get, its paths absolute: they mean the same in every process of a machine."""
        plan, frozen = context.plan, context.backbone.frozen
        folder, logs = Path(plan.backbone).absolute(), plan.tensorboard
        backbone = str(folder) if folder.exists() else plan.backbone
        there = replace(plan, backbone=backbone, tensorboard=logs.absolute() if logs else None)
        there = replace(there, output=plan.output.absolute(), mlflow=plan.mlflow and mlflow_uri(plan.mlflow))
        dtype, version = str(frozen.dtype).removeprefix("torch."), str(versions()["promptprior"])
        return cls(there, context.tasks, dtype, frozen.card, version, token, device, threads)


@dataclass(frozen=True)
class WorkerTask:
    """A piece of work with the keys of its cells in place of the cells, since every worker has the tasks already; and
    the folder for its checkpoints."""

    work: Work
    cells: tuple[str, ...]
    folder: Path

    @classmethod
    def of(cls, context: WorkerContext, work: Work) -> "WorkerTask":
        """A piece of work as it is sent to a worker."""
        folder = work_folder(context.plan.output.absolute(), work).absolute()
        if isinstance(work, Group):
            return cls(replace(work, cells=()), tuple(cell.key for cell in work.cells), folder)
        return cls(work, (), folder)


class Worker:
    """One process with a backbone, which may use a share of the machine's memory. While `do` runs, `tell` hears what it
    does, and Ray calls `progress`."""

    def __init__(self, init: WorkerInit, memory_share: float, tell: OnProgress | None = None) -> None:
        self.init, self.memory_share, self.tell = init, memory_share, tell
        self.context: WorkerContext | None = None
        self.cells: Mapping[str, Cell] = {}
        self.last_progress = ("starting", 0.0)

    def setup(self) -> str:
        """Load the backbone and name the cells. Returns what is wrong here, or an empty string.

        What is wrong is another version of the library, another backbone, or a backbone that cannot be loaded.
        """
        init, plan, here = self.init, self.init.plan, str(versions()["promptprior"])
        try:
            if here != init.version:
                raise SpecError(f"promptprior is {here} here and {init.version} where the comparison was started")
            backbone = load_backbone(plan, init.dtype, init.device)
            if backbone.card.fingerprint != init.card.fingerprint:
                raise SpecError(
                    f"backbone {plan.backbone!r} (--backbone) has fingerprint {backbone.card.fingerprint} here and "
                    f"{init.card.fingerprint} where the comparison was started: the weights are not the same"
                )
        except PromptpriorError as error:
            return f"{socket.gethostname()}: {error}"
        frozen = replace(backbone.frozen, card=init.card)  # rows name it as the driver does
        backbone = replace(backbone, frozen=frozen, max_tokens=max(256, int(self.memory_share * backbone.max_tokens)))
        self.context = WorkerContext(plan, init.tasks, backbone)
        self.cells = {cell.key: cell for cell in cells(plan, init.tasks, backbone)}
        return ""

    def do(self, task: WorkerTask, fitted: FittedPrior | None) -> Result:
        """Do a piece of work."""
        assert self.context is not None
        torch.set_num_threads(self.init.threads)  # here, since each thread has its own number
        work, folder = task.work, task.folder
        if isinstance(work, Group):
            work = replace(work, cells=tuple(self.cells[key] for key in task.cells))
        # Checkpoints go into the output folder if it is shared, so that another worker can resume from them.
        is_shared = self.init.token.exists()
        if not is_shared:
            folder = Path(tempfile.gettempdir()) / self.init.token.name / folder.name

        def on_progress(text: str, share: float) -> None:
            self.last_progress = (text, share)
            if self.tell is not None:
                self.tell(text, share)

        result = do_work(self.context, work, fitted, folder, on_progress)
        if not is_shared and not isinstance(result, Failure):  # a shared folder is the driver's to tidy
            remove_folder(folder)
        return result

    def progress(self) -> tuple[str, float]:
        """What the work does at the moment, and which share of it is done."""
        return self.last_progress


@dataclass
class LostWork:
    """Work whose worker died. It goes to the next worker that is free, until MAX_DEATHS workers died with it."""

    waiting: list[Work] = field(default_factory=list)
    deaths: Counter[str] = field(default_factory=Counter)  # by the work's key

    def take(self, queue: Queue) -> Work | None:
        """What a free worker does next: lost work before that of the queue."""
        return self.waiting.pop(0) if self.waiting else queue.take()

    def add(self, work: Work, reason: str, progress: ProgressDisplay) -> Failure | None:
        """Keep work for another worker; its failure where no further one is to try."""
        self.deaths[work.key] += 1
        if self.deaths[work.key] >= MAX_DEATHS:
            return Failure(f"its worker died {MAX_DEATHS} times: {reason}")
        progress.say(f"{work.label} · its worker is lost ({reason}), another takes over")
        self.waiting.append(work)
        return None


@dataclass(eq=False)
class WorkerHandle:
    """A worker as a driver sees it: what runs it (a Ray actor, a process), where its answer comes from (what Ray
    promised, a pipe), and the work it holds."""

    actor: Any
    answer: Any
    is_ready: bool = False
    work: Work | None = None
    progress: tuple[str, float] = ("starting", 0.0)


def show_busy(workers: Sequence[WorkerHandle], progress: ProgressDisplay) -> None:
    """Show how far workers are, as they last said."""
    busy = [(worker.work, *worker.progress) for worker in workers if worker.work is not None]
    progress.within = sum(share * work.tokens for work, _, share in busy)
    text, share = "waiting for workers", 0.0
    if busy:
        work, text, share = busy[0]
        text = f"{work.label} · {text}"
    progress.tell(f"{len(busy)} of {len(workers)} workers busy · {text}", share)

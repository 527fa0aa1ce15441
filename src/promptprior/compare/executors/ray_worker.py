"""A worker process of the Ray engine: loads the backbone once, then does one piece of work at a time."""

import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from promptprior.artifacts.artifact import versions
from promptprior.backbone import BackboneCard
from promptprior.compare.executors.executor import Result, attempt
from promptprior.compare.plan import Cell, Plan, Tasks, cells
from promptprior.compare.schedule import Fit, Group, Work, WorkerContext
from promptprior.compare.store import Fitted
from promptprior.errors import PromptpriorError, SpecError


@dataclass(frozen=True)
class WorkerInit:
    """What a worker is told once. `dtype`, `card` and `version` are those of the process that was started; `token` is a
    file that stands there: who sees it shares the output folder."""

    plan: Plan
    tasks: Tasks
    dtype: str
    card: BackboneCard
    version: str
    token: Path


@dataclass(frozen=True)
class WorkerTask:
    """A piece of work without its cells' tasks, which every worker has, and where its checkpoints would be."""

    work: Work
    cells: tuple[str, ...]
    folder: Path


def ordered(work: Work, folder: Path) -> WorkerTask:
    """Work as it is sent."""
    if isinstance(work, Fit):
        return WorkerTask(work, (), folder)
    return WorkerTask(replace(work, cells=()), tuple(cell.key for cell in work.cells), folder)


class Worker:
    """One process with a backbone. Ray calls `look` while `do` runs."""

    def __init__(self, desk: WorkerInit, share: float) -> None:
        self.desk, self.share = desk, share
        self.worker_context: WorkerContext | None = None
        self.cells: Mapping[str, Cell] = {}
        self.said = ("starting", 0.0)

    def sit(self) -> str:
        """Load the backbone and name the cells. Returns what is wrong here, or nothing."""
        try:
            self.worker_context = make_bench(self.desk, self.share)
        except PromptpriorError as error:
            return f"{socket.gethostname()}: {error}"
        plan, tasks = self.desk.plan, self.desk.tasks
        self.cells = {cell.key: cell for cell in cells(plan, tasks, self.worker_context.backbone)}
        return ""

    def do(self, order: WorkerTask, fitted: Fitted | None) -> Result:
        """Do a piece of work."""
        assert self.worker_context is not None
        torch.set_num_threads(threads(self.desk.plan))  # of this thread: each has its own number
        return attempt(self.worker_context, self.work(order), fitted, self.folder(order), self.tell)

    def work(self, order: WorkerTask) -> Work:
        """An order with its cells again."""
        if isinstance(order.work, Group):
            return replace(order.work, cells=tuple(self.cells[key] for key in order.cells))
        return order.work

    def folder(self, order: WorkerTask) -> Path:
        """Where checkpoints go: into the output folder if it is shared, so that whoever is next can go on from them."""
        if self.desk.token.exists():
            return order.folder
        return Path(tempfile.gettempdir()) / self.desk.token.name / order.folder.name

    def tell(self, text: str, share: float) -> None:
        """Keep what the work said last."""
        self.said = (text, share)

    def look(self) -> tuple[str, float]:
        """What the work said last, and which share of it is done."""
        return self.said


def make_bench(desk: WorkerInit, share: float) -> WorkerContext:
    """Plan, tasks and backbone, the same as in the process that was started, but for its share of the memory.

    Raises SpecError when the library or the backbone is another one here.
    """
    here = str(versions()["promptprior"])
    if here != desk.version:
        raise SpecError(f"promptprior is {here} here and {desk.version} where the comparison was started")
    plan = desk.plan
    backbone = plan.load_backbone(desk.dtype, plan.device or ("cuda" if plan.ray_gpus else "cpu"))
    if backbone.card.fingerprint != desk.card.fingerprint:
        raise SpecError(
            f"backbone {plan.backbone!r} (--backbone) has fingerprint {backbone.card.fingerprint} here and "
            f"{desk.card.fingerprint} where the comparison was started: the weights are not the same"
        )
    frozen = replace(backbone.frozen, card=desk.card)
    most = max(256, int(share * backbone.max_tokens))
    return WorkerContext(plan, desk.tasks, replace(backbone, frozen=frozen, max_tokens=most))


def threads(plan: Plan) -> int:
    """Threads of a worker: its CPU cores."""
    return max(1, int(plan.ray_cpus))

"""A worker process of the Ray executor: loads the backbone once, then does one piece of work at a time."""

import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from promptprior.artifacts.artifact import versions
from promptprior.backbone import BackboneCard
from promptprior.compare.execute import Failure, FittedPrior, Result, do_work
from promptprior.compare.plan import Cell, Plan, Tasks, cells, load_backbone
from promptprior.compare.schedule import Group, Work, WorkerContext
from promptprior.errors import PromptpriorError, SpecError
from promptprior.files import remove_folder


@dataclass(frozen=True)
class WorkerInit:
    """What a worker gets once. `dtype`, `card` and `version` are those of the driver, the process that the user
    started; `token` is a file that stands there: a worker that sees it shares the output folder."""

    plan: Plan
    tasks: Tasks
    dtype: str
    card: BackboneCard
    version: str
    token: Path


@dataclass(frozen=True)
class WorkerTask:
    """A piece of work with the keys of its cells in place of the cells, since every worker has the tasks already; and
    the folder for its checkpoints."""

    work: Work
    cells: tuple[str, ...]
    folder: Path


class Worker:
    """One process with a backbone. Ray calls `progress` while `do` runs."""

    def __init__(self, init: WorkerInit, memory_share: float) -> None:
        self.init, self.memory_share = init, memory_share
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
            backbone = load_backbone(plan, init.dtype, plan.device or ("cuda" if plan.ray_gpus else "cpu"))
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
        torch.set_num_threads(max(1, int(self.init.plan.ray_cpus)))  # here, since each thread has its own number
        work, folder = task.work, task.folder
        if isinstance(work, Group):
            work = replace(work, cells=tuple(self.cells[key] for key in task.cells))
        # Checkpoints go into the output folder if it is shared, so that another worker can resume from them.
        is_shared = self.init.token.exists()
        if not is_shared:
            folder = Path(tempfile.gettempdir()) / self.init.token.name / folder.name

        def on_progress(text: str, share: float) -> None:
            self.last_progress = (text, share)

        result = do_work(self.context, work, fitted, folder, on_progress)
        if not is_shared and not isinstance(result, Failure):  # a shared folder is the driver's to tidy
            remove_folder(folder)
        return result

    def progress(self) -> tuple[str, float]:
        """What the work does at the moment, and which share of it is done."""
        return self.last_progress

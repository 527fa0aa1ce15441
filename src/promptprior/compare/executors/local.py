"""The engine that works in this process, one piece after the other."""

from dataclasses import dataclass, field

from promptprior.compare.executors.executor import TESTING, Result, Tell, attempt
from promptprior.compare.progress import Progress
from promptprior.compare.schedule import Fit, Work, WorkerContext, work_folder
from promptprior.compare.store import kept_prior


@dataclass
class LocalEngine:
    """Holds one piece of work and does it when asked for its result."""

    worker_context: WorkerContext
    progress: Progress
    running: list[Work] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        """Whether nothing is held."""
        return not self.running

    def start(self, work: Work) -> None:
        """Hold a piece of work."""
        self.running.append(work)

    def wait(self) -> tuple[Work, Result] | None:
        """Do what is held."""
        [work] = self.running
        result = self.result(work)
        self.running.pop()
        return work, result

    def result(self, work: Work) -> Result:
        """Do a piece of work, from its prior if it needs one."""
        worker_context = self.worker_context
        prior = None if isinstance(work, Fit) else work.prior
        fitted = kept_prior(prior, worker_context.backbone.card) if prior is not None else None
        return attempt(worker_context, work, fitted, work_folder(worker_context.plan.output, work), self.teller(work))

    def teller(self, work: Work) -> Tell:
        """What a piece of work tells goes straight to progress."""

        def tell(text: str, share: float) -> None:
            self.progress.within = share * work.tokens
            self.progress.tell(f"{work.label} · {text}", force=text == TESTING)

        return tell

    def close(self) -> None:
        """Nothing runs between two pieces of work."""

"""Where the work of a comparison is done: the contract of engines, and what they all do with a piece of work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from typing import Protocol

from promptprior.compare.execute import adapt_group, fit_prior
from promptprior.compare.schedule import Fit, Work, WorkerContext
from promptprior.compare.store import Finished, Fitted
from promptprior.errors import PromptpriorError
from promptprior.rules.rule import Info
from promptprior.train import Watch
from promptprior.watch import WatchStage

TESTING = "testing"
Tell = Callable[[str, float], None]
"""Told what a piece of work is doing, and which share of it is done."""


@dataclass(frozen=True)
class Failure:
    """Why work failed, in a line."""

    error: str


Result = Fitted | tuple[Finished, ...] | Failure


class Engine(Protocol):
    """Does work somewhere, a piece at a time or many at once. It writes no results: who asked for them does."""

    @property
    def running(self) -> list[Work]:
        """Work that has been started and is not over."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether one more piece of work can be started."""
        ...

    def start(self, work: Work) -> None:
        """Take a piece of work; the prior of a group is kept by now."""
        ...

    def wait(self) -> tuple[Work, Result] | None:
        """Wait for what happens next: work that is over, or None where there may be more room now."""
        ...

    def close(self) -> None:
        """Stop whatever runs."""
        ...


def attempt(worker_context: WorkerContext, work: Work, fitted: Fitted | None, folder: Path, tell: Tell) -> Result:
    """Do a piece of work, checkpointed in a folder. A failure of any kind is a result too: other work goes on."""
    try:
        if isinstance(work, Fit):
            return fit_prior(worker_context, work, folder, watching(tell))
        return adapt_group(worker_context, work, fitted, folder, watching(tell), lambda: tell(TESTING, 1.0))
    except Exception as error:
        return Failure(described(error))


def watching(tell: Tell) -> WatchStage:
    """A watcher of training that tells of its steps."""

    def stage(name: str) -> Watch:
        def watch(step: int, steps: int, info: Info) -> None:
            loss = float(info["loss"].double().mean()) if "loss" in info else float("nan")
            share = step / max(steps, 1) if name != "probe" else 0.0
            tell(f"{name} step {step}/{steps} · loss {loss:.3f}", share)

        return watch

    return stage


def described(error: Exception) -> str:
    """An error in a line, with its place where it is not one of ours.

    >>> described(PromptpriorError("no room"))
    'PromptpriorError: no room'
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, PromptpriorError) or error.__traceback__ is None:
        return text
    last = extract_tb(error.__traceback__)[-1]
    return f"{text} ({Path(last.filename).name}, line {last.lineno})"

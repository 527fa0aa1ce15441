"""Progress and time left of a comparison, from the tokens its stages will cost."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from promptprior.rules.rule import Info
from promptprior.train import Watch

Say = Callable[[str], None]


def say_to_stderr(line: str) -> None:
    """One line of progress; on a terminal each replaces the last."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line[:150]}", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


@dataclass
class Progress:
    """How far a comparison is. `total`, `done` and `within` (what running work has done by now) count tokens as
    estimate.py does; the pace gives the time left."""

    total: float
    say: Say = say_to_stderr
    every: float = 2.0
    done: float = 0.0
    within: float = 0.0
    started: float = field(default_factory=time.monotonic)
    said: float = field(default=-1e9)

    def reached(self, left: float) -> None:
        """What is left when work is over."""
        self.done, self.within = self.total - left, 0.0

    def tell(self, text: str, force: bool = False) -> None:
        """Say how far we are, unless something was said just now."""
        now = time.monotonic()
        if force or now - self.said >= self.every:
            self.said = now
            self.say(f"{100 * self.share:3.0f}% {text} · {self.left(now)}")

    @property
    def share(self) -> float:
        """Share of the work done, parts of running work included."""
        return min(1.0, (self.done + self.within) / max(self.total, 1.0))

    def left(self, now: float) -> str:
        """Time left at the pace so far."""
        share, passed = self.share, now - self.started
        return f"{duration(passed * (1 - share) / share)} left" if share > 0.01 else "time left unknown yet"


def watch_steps(label: str, say: Say = say_to_stderr, every: float = 2.0) -> Callable[[str], Watch]:
    """A watcher for runs that stand alone: the step, the loss and the time left."""

    def watcher(stage: str) -> Watch:
        started, said = time.monotonic(), -every

        def watch(step: int, steps: int, info: Info) -> None:
            nonlocal said
            passed = time.monotonic() - started
            if passed - said < every and step < steps:
                return
            said = passed
            left = duration(passed * (steps - step) / step)
            loss = float(info["loss"].double().mean()) if "loss" in info else float("nan")
            say(f"{label} · {stage} step {step}/{steps} · loss {loss:.3f} · {left} left")

        return watch

    return watcher


def duration(seconds: float) -> str:
    """A time a person reads.

    >>> duration(75), duration(5), duration(7300)
    ('1 min 15 s', '5 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"

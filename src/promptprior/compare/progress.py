"""How far work is, on stderr: bars on a terminal (rich), elsewhere a plain line every few seconds."""

import atexit
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from promptprior.errors import is_quiet
from promptprior.rules.rule import Info
from promptprior.watch import WatchStage, combine_watchers

Say = Callable[[str], None]


def say_to_stderr(line: str) -> None:
    """One line on stderr, unless all is to be quiet; while bars are shown there, rich puts it above them."""
    if not is_quiet():
        print(line, file=sys.stderr, flush=True)


def report_failure(say: Say, line: str) -> None:
    """Say what went wrong; where `say` is the default, also when all else is to be quiet."""
    if say is say_to_stderr:
        print(line, file=sys.stderr, flush=True)
    else:
        say(line)


class ProgressDisplay:
    """Bars where `say` is the default and stderr a terminal, else lines. Of a comparison it knows how much is `done` of
    a `total`, how much comes `later`, and how much is done `within` running work, in tokens (cost_estimate.py)."""

    every = 2.0  # seconds between two lines

    def __init__(self, say: Say, total: float = 1.0) -> None:
        self.say, self.total, self.done, self.within, self.later = say, max(total, 1.0), 0.0, 0.0, 0.0
        self.start, self.last_line, self.bars = time.monotonic(), -1e9, None
        if say is say_to_stderr and sys.stderr.isatty() and not is_quiet():  # rich is imported only where it is used
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            above = sys.stdout.isatty()  # results on the same terminal go above the bars; a pipe is left alone
            self.bars = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=above)
            atexit.register(self.close)  # a run that ends early must not leave the cursor hidden

    def show(self, line: str, *bars: tuple[str, float], force: bool = False) -> None:
        """Show a line, or in its place bars, each with its text and the share that is done."""
        if self.bars is not None:
            self.bars.start()
            while len(self.bars.tasks) < len(bars):
                self.bars.add_task("", total=1.0)
            for task, (text, share) in zip(self.bars.tasks, bars, strict=True):
                if share < task.completed:  # another stage: its pace is its own
                    self.bars.reset(task.id)
                self.bars.update(task.id, completed=share, description=text)
        elif force or time.monotonic() - self.last_line >= self.every:
            self.last_line = time.monotonic()
            self.say(line)

    def tell(self, text: str, stage_share: float) -> None:
        """Show how much of a comparison is done and the time left, and how far the stage at hand is."""
        share, passed = min(1.0, (self.done + self.within) / self.total), time.monotonic() - self.start
        left = f"{duration(passed * (1 - share) / share)} left" if share > 0.01 else "time left unknown yet"
        self.show(f"{100 * share:3.0f}% {text} · {left}", ("all work", share), (text, stage_share))

    def close(self) -> None:
        """Take the bars away."""
        if self.bars is not None:
            self.bars.stop()


def watch_steps(label: str, logs: Sequence[WatchStage] = (), say: Say = say_to_stderr) -> WatchStage:
    """A watcher for runs that stand alone: lines with the step, the loss and the time left; and others beside it."""
    display = ProgressDisplay(say)

    def tell(stage: str, start: float, step: int, steps: int, info: Info) -> None:
        text, passed = f"{label} · {step_text(stage, step, steps, info)}", time.monotonic() - start
        line = f"{text} · {duration(passed * (steps - step) / step)} left"
        display.show(line, (text, step / steps), force=step == steps)

    return combine_watchers([lambda stage: partial(tell, stage, time.monotonic()), *logs])


def step_text(stage: str, step: int, steps: int, info: Info) -> str:
    """Step and mean loss of a stage."""
    return f"{stage} step {step}/{steps} · loss {info['loss'].double().mean() if 'loss' in info else float('nan'):.3f}"


def duration(seconds: float) -> str:
    """A time a person reads: 75 seconds are "1 min 15 s", 7300 are "2 h 1 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else ""
    return hours or (f"{minutes} min {rest} s" if minutes else f"{rest} s")

"""Ctrl-C, SIGTERM and SIGHUP: training saves a checkpoint before the signal has its effect.

Slurm, Kubernetes and torchrun send SIGTERM, a lost terminal SIGHUP. Signals that are ignored (nohup) stay ignored.
Outside the main thread Python allows no handlers, and nothing here does anything.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
IMPATIENCE = 2.0  # seconds after which a second signal no longer waits (launchers send the first one twice)

IMPORTING = "<frozen importlib._bootstrap>"  # the file of the frames of imports

_received: list[int] = []
_unfinished: list[bool] = []


class Interrupted(KeyboardInterrupt):
    """A signal asked this program to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    # Returns the handlers that stood there before.
    if threading.current_thread() is not threading.main_thread():
        return {}
    previous = {signum: signal.getsignal(signum) for signum in SIGNALS}
    known = {signum: old for signum, old in previous.items() if old not in (signal.SIG_IGN, None)}
    for signum in known:
        signal.signal(signum, handler)
    return known


def _restore_handlers(previous: dict[int, Any]) -> None:
    for signum, handler in previous.items():
        signal.signal(signum, handler)


@contextmanager
def interruptible(*, owns_process: bool = False) -> Iterator[None]:
    """Inside, signals raise Interrupted, whatever error an interrupted import or callback makes of it.

    During imports, where an exception may be swallowed or abort C++ code, they end the process at once, or wait while
    something is `unfinished`. In a process of its own, one that was interrupted is deaf to more signals: it is ending.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        _received.append(signum)
        while frame is not None and frame.f_code.co_filename != IMPORTING:
            frame = frame.f_back
        if frame is None:
            raise Interrupted(signum)
        if not _unfinished:
            print(f"promptprior: stopped by {signal.Signals(signum).name}.", file=sys.stderr, flush=True)
            os._exit(128 + signum)

    previous = _install(interrupt)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if _received and not isinstance(error, Interrupted):
            raise Interrupted(_received[0]) from error
        raise
    finally:
        _restore_handlers(dict.fromkeys(previous, signal.SIG_IGN) if _received and owns_process else previous)
        _received.clear()


@contextmanager
def unfinished() -> Iterator[None]:
    """Inside, there is something that must be tidied up before the process ends."""
    _unfinished.append(True)
    try:
        yield
    finally:
        _unfinished.pop()


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Put back the handlers that a library replaces inside: Ray's would end this process with exit code 15."""
    previous = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            _restore_handlers({signum: handler for signum, handler in previous.items() if handler is not None})


def raise_if_interrupted() -> None:
    """Raise Interrupted if a signal came that waits, or whose exception was swallowed, as callbacks sometimes do."""
    if _received:
        raise Interrupted(_received[0])


@dataclass
class DeferredSignals:
    """Inside, signals only set `received` (0 for none), so that a step is never cut in two; `deliver` lets them act.

    One that has not acted by the end acts then. A second one acts at once: somebody does not want to wait.
    """

    received: int = 0
    _since: float = 0.0
    _previous: dict[int, Any] = field(default_factory=dict)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = signum, time.monotonic()
        elif time.monotonic() - self._since > IMPATIENCE:
            self.deliver(signum)

    def deliver(self, signum: int) -> None:
        """Let a signal do what it does outside; where its handler returns, go on as before."""
        _restore_handlers(self._previous)
        self.received = 0
        signal.raise_signal(signum)
        self._previous = _install(self._note)

    def __enter__(self) -> "DeferredSignals":
        self._previous = _install(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        _restore_handlers(self._previous)
        if self.received:
            signal.raise_signal(self.received)

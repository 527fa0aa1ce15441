"""As much of Ray as the executor asks for, in one process: what is sent is pickled, and workers die as tests say."""

import pickle
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """Ray's base of errors."""


class RayActorError(RayError):
    """A worker is dead."""


def sent(value: Any) -> Any:
    """What arrives at the other end."""
    return pickle.loads(pickle.dumps(value))


@dataclass(eq=False)
class Ref:
    """An answer to come: computed when it is waited for, so that work runs in the order of asking."""

    compute: Callable[[], Any]
    answer: Any = None
    error: Exception | None = None
    is_over: bool = False

    def finish(self) -> None:
        if not self.is_over:
            try:
                self.answer = sent(self.compute())
            except RayError as error:
                self.error = error
            self.is_over = True


@dataclass(eq=False)
class Handle:
    """An actor; `fate` is asked before each piece of work whether it dies of it."""

    made: Any
    fate: Callable[[], bool]
    is_dead: bool = False

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Ref:
            given = sent(arguments)
            return Ref(lambda: self.answer(name, given))

        return SimpleNamespace(remote=remote)

    def answer(self, name: str, given: tuple[Any, ...]) -> Any:
        self.is_dead = self.is_dead or (name == "do" and self.fate())
        if self.is_dead:
            raise RayActorError("The actor died unexpectedly.\nIts machine is gone.")
        return getattr(self.made, name)(*given)


@dataclass
class FakeRay:
    """A cluster. `deaths` are the pieces of work, counted from 1, that kill their worker."""

    machines: list[dict[str, Any]]
    deaths: Sequence[int] = ()
    works: int = 0
    spawned: list[Handle] = field(default_factory=list)
    killed: list[Handle] = field(default_factory=list)
    is_shut_down: bool = False
    exceptions = SimpleNamespace(RayError=RayError, RayActorError=RayActorError)

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None:
        """Connect. Ray takes SIGTERM for itself then."""
        signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(signum))

    def nodes(self) -> list[dict[str, Any]]:
        return self.machines

    def put(self, value: Any) -> Any:
        return sent(value)

    def remote(self, kind: type) -> Any:
        def make(*arguments: Any) -> Handle:
            self.spawned.append(Handle(kind(*sent(arguments)), self.dies))
            return self.spawned[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def dies(self) -> bool:
        self.works += 1
        return self.works in self.deaths

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        for ref in refs[:num_returns]:
            ref.finish()
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref: Ref) -> Any:
        ref.finish()
        if ref.error:
            raise ref.error
        return ref.answer

    def kill(self, actor: Handle) -> None:
        self.killed.append(actor)

    def shutdown(self) -> None:
        self.is_shut_down = True

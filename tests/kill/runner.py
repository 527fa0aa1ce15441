"""Runs fit, adapt and compare many times, each time disturbed and then started again, and compares what is on disk.

`python -m tests.kill.runner SEED VERB:DISTURBANCE:COUNT …` prints a JSON object for each: how many runs were
disturbed, and what went wrong. VERB:removal kills a command once at every operation that removes its checkpoints,
VERB:each at every operation. Every run is the real command line in a process of its own, forked from this one, which
has imported everything and trained nothing. Its clock stands still, so that equal results are equal bytes, seconds
included; its folder is in memory where there is /dev/shm, for a killed process (unlike a dead machine) loses nothing
that it wrote.

The operations that a run can die at are every opening for writing, write (half of it is done), fsync, rename, exchange,
removal and new folder inside its folder, and every training step.
"""

import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from promptprior import files
from promptprior.cli import main
from promptprior.compare import execute
from promptprior.compare import run as comparison
from promptprior.fit import RunControl
from promptprior.report.results import Row
from promptprior.rules.descent import Descent
from tests.backbone.tiny import saved_model
from tests.test_cli import write_task

TINY = ("--dtype", "float32", "--device", "cpu", "--length", "3", "--data", "../data", "--backbone", "../model")
TARGET = ("--shots", "2", "--target.batch-size", "2", "--target.eval-every", "1", "--test-limit", "4")
SOURCES = ("--sources", "vowels,sounds", "--source.batch-size", "2")
VERBS = {
    "fit": ("fit", "--method", "multitask", *SOURCES, *TINY, "--steps", "4", "--output", "out/prior"),
    "adapt": ("adapt", "--target", "edges", *TARGET, *TINY, "--steps", "4", "--output", "out/prompt"),
    "guard": ("adapt", "--prior", "../prior/out/prior", "--guard", "true", "--target", "edges", *TARGET,
              "--data", "../data", "--steps", "2", "--output", "out/prompt"),
    "compare": ("compare", "--methods", "zero_shot,prompt_tuning,multitask", *SOURCES, "--targets", "edges,other,third",
                "--seeds", "13", "--cells-per-run", "2", *TARGET, *TINY, "--steps", "2", "--output", "out"),
    "predict": ("predict", "--prompt", "../made-adapt/out/prompt", "--input", "../data/edges/test.jsonl", *TINY[:4],
                "--target", "../data/edges", "--backbone", "../model", "--output", "answers.csv"),
    "evaluate": ("evaluate", "--prompt", "../made-adapt/out/prompt", *TINY[:4], "--target", "../data/edges",
                 "--backbone", "../model", "--output", "scores.json"),
    "report": ("report", "../made-compare/out", "--output", "page.html", "--markdown", "page.md", "--csv", "tables"),
}  # fmt: skip
TRIES = 3  # times that one run is disturbed, at most
WRITES = ("open", "mkdir", "write", "fsync", "reserve")  # what a full disk refuses


@dataclass
class Disturbance:
    """What happens to a run: at its n-th operation or training step, or after some seconds."""

    kind: str = "none"  # none, kill (at the n-th operation), full (from it on), SIGINT or SIGTERM (in the n-th step)
    at: int = 0
    after: float | None = None  # SIGKILL, SIGINT or SIGTERM from outside


@dataclass
class Outcome:
    """How a run ended, and how many operations, writes and steps it made."""

    code: int
    said: str
    operations: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return self.operations.count("step")


def disturb(folder: Path, disturbance: Disturbance, log: int) -> None:
    """Count the operations of this process in a folder, and disturb it; nothing of this can be undone."""
    count = {"all": 0, "writes": 0, "step": 0}

    def operation(name: str, half: Callable[[], object] | None = None) -> None:
        count["all"] += 1
        count["step"] += name == "step"
        count["writes"] += name in WRITES
        if disturbance.kind == "kill" and count["all"] == disturbance.at:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        if disturbance.kind == "full" and name in WRITES and count["writes"] >= disturbance.at:
            if half is not None:
                half()
            raise OSError(errno.ENOSPC, "No space left on device")
        os.write(log, f"{name}\n".encode())
        if disturbance.kind in ("SIGINT", "SIGTERM") and name == "step" and count["step"] == disturbance.at:
            signal.raise_signal(getattr(signal, disturbance.kind))

    def is_inside(path: object) -> bool:
        return isinstance(path, str | Path) and Path(path).absolute().is_relative_to(folder)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            name = "open"
        else:
            name = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "rmdir"}.get(
                event, ""
            )
        if name and is_inside(args[0]):
            operation(name)

    class Halved:
        """A file that can die in the middle of a write."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> "Halved":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            def half() -> None:
                self.file.write(data[: len(data) // 2])
                self.file.flush()

            operation("write", half)
            return int(self.file.write(data))

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            operation(name)
            return real(*args, **kwargs)

        return call

    opened = Path.open

    def halved(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = opened(path, mode, *args, **kwargs)
        return Halved(file) if mode in ("wb", "ab+") and is_inside(path) else file

    Path.open = halved  # type: ignore[method-assign, assignment]
    os.fsync = wrapped("fsync", os.fsync)
    os.posix_fallocate = wrapped("reserve", os.posix_fallocate)
    files.exchange_names = wrapped("exchange", files.exchange_names)
    Descent.step = wrapped("step", Descent.step)  # type: ignore[method-assign]
    sys.addaudithook(audit)


def plain_report(rows: Sequence[Row], path: Path, *_: object, **__: object) -> Path:
    """A page that takes no second to make, written as the real one is."""
    files.write_text(path, json.dumps([row.to_json() for row in rows], indent=1))
    return path


def run(verb: str, folder: Path, disturbance: Disturbance | None = None, real_report: bool = False) -> Outcome:
    """Run a command in a folder, in a process forked from this one."""
    disturbance = disturbance or Disturbance()
    said, log = folder.with_suffix(".said"), folder.with_suffix(".log")
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            sys.argv = ["promptprior", *VERBS[verb]]
            clock = SimpleNamespace(monotonic=lambda: 0.0)
            sys.modules["promptprior.train"].time = execute.time = clock  # type: ignore[attr-defined, assignment]
            every_step = disturbance.kind in ("kill", "full") or disturbance.after is not None
            RunControl.__init__.__defaults__ = (None, None, 0.0 if every_step else 30.0)  # type: ignore[attr-defined]
            if not real_report:
                comparison.write_report = plain_report  # type: ignore[assignment]
            disturb(folder, disturbance, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            code = main()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(99)
    if disturbance.after is not None:
        time.sleep(disturbance.after)
        os.kill(child, getattr(signal, disturbance.kind))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Outcome(status, said.read_text(), log.read_text().split() if log.exists() else [])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; folders without files too, as their names with a slash."""
    tree = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)) + "/" * p.is_dir(): b"" if p.is_dir() else p.read_bytes() for p in tree}


def leftovers(names: Iterator[str]) -> list[str]:
    """What nobody wants to find."""
    return [name for name in names if ".partial-" in name or ".lock" in name or ".claim" in name]


@contextmanager
def scene() -> Iterator[Path]:
    """A folder with a tiny model and tasks, in memory where it can be."""
    memory = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(prefix="promptprior-kill-", dir=memory if memory.is_dir() else None))
    try:
        saved_model(base / "model", seed=0)
        for name, letters in {"vowels": "ae", "sounds": "st", "edges": "xz", "other": "kl", "third": "mn"}.items():
            write_task(base / "data" / name, letters)
        (base / "warm").mkdir()
        with chdir(base / "warm"), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            # Imports everything. Nothing is trained: torch's backward pass does not work after a fork if it ran before.
            words = ["compare", "--methods", "zero_shot", "--targets", "edges,other", *TINY, "--output", "out"]
            assert main(words) == 0
        shutil.rmtree(base / "warm")
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def problems(
    reference: dict[str, bytes], folder: Path, disturbed: list[Outcome], last: Outcome, steps: int
) -> list[str]:
    """What is wrong after a disturbed command was given once more."""
    wrong = [] if last.code == 0 else [f"the same command again ended with {last.code}: {last.said[-2000:]}"]
    after = contents(folder)
    wrong += [f"missing: {name}" for name in sorted(reference.keys() - after.keys())]
    wrong += [f"left over: {name}" for name in sorted(after.keys() - reference.keys())]
    wrong += [f"differs: {name}" for name in sorted(reference.keys() & after.keys()) if reference[name] != after[name]]
    made = sum(outcome.steps for outcome in disturbed) + last.steps
    if made > steps + len(disturbed):  # a step whose checkpoint was not written yet is made again
        wrong.append(f"{made} steps were made where {steps} are enough")
    return wrong


def removals(operations: Sequence[str]) -> list[int]:
    """The operations (from 1 on) at which folders of checkpoints are removed, which hold a folder for each stage."""
    found, run = list[int](), list[int]()
    for place, name in enumerate([*operations, ""], start=1):
        if name in ("rename", "remove", "rmdir"):
            run.append(place)
            continue
        if sum(operations[p - 1] == "rmdir" for p in run) > 1:
            found += run
        run = []
    return found


def kill_each(base: Path, verb: str, kind: str) -> dict[str, Any]:
    """Kill a command at every operation (`kind` each), or at every one that removes its checkpoints (removal)."""
    made = {"guard": ("prior", "fit"), "report": ("made-compare", "compare")}.get(verb, ("made-adapt", "adapt"))
    if not (base / made[0]).exists():
        assert run(made[1], base / made[0]).code == 0
    whole = run(verb, base / "reference", Disturbance())
    assert whole.code == 0, whole.said
    reference, failures = contents(base / "reference"), list[str]()
    operations = run(verb, base / "counted", Disturbance("kill", 10**9)).operations
    places = removals(operations) if kind == "removal" else [*range(1, len(operations) + 1)]
    for at in places:
        folder = base / f"{kind}{at}"
        outcome = run(verb, folder, Disturbance("kill", at))
        wrong = [] if outcome.code == -signal.SIGKILL else [f"ended with {outcome.code}: {outcome.said[-2000:]}"]
        last = run(verb, folder)
        steps = whole.steps * (2 if verb in ("adapt", "guard") else 1)  # they begin again, for they are finished
        if kind == "each":  # no claim tells that these are alone: a partial file goes after an hour
            for partial in folder.rglob(".*.partial-*"):
                partial.unlink()
        wrong += problems(reference, folder, [outcome], last, steps)
        failures += [f"{verb}, killed at operation {at}: {text}" for text in wrong]
        shutil.rmtree(folder)
    for name in ("reference", "counted"):
        shutil.rmtree(base / name)
    return {"verb": verb, "kind": kind, "disturbed": len(places), "failures": failures}


def experiment(base: Path, verb: str, kind: str, count: int, seed: int) -> dict[str, Any]:
    """Disturb a command `count` times. `kind` is kill (operations), time (SIGKILL), full, SIGINT or SIGTERM."""
    rng, failures, disturbed_runs = random.Random(seed), list[str](), 0
    if verb == "guard" and not (base / "prior").exists():
        assert run("fit", base / "prior").code == 0
    start = time.monotonic()
    real_report = kind not in ("kill", "full")
    whole = run(verb, base / "reference", None, real_report)
    seconds = time.monotonic() - start
    assert whole.code == 0, whole.said
    reference, writes = contents(base / "reference"), [name for name in whole.operations if name in WRITES]
    assert not leftovers(iter(reference)), leftovers(iter(reference))
    while disturbed_runs < count:
        folder, disturbed, wrong = base / f"run{disturbed_runs}", list[Outcome](), list[str]()
        was_finished = False
        for _ in range(rng.randint(1, TRIES) if kind in ("kill", "time") else 1):
            total = {"kill": len(whole.operations) * 2, "full": len(writes)}.get(kind, whole.steps)
            disturbance = Disturbance("SIGKILL" if kind == "time" else kind, rng.randint(1, total))
            if kind == "kill" and disturbed:  # there is less to do than in a whole run
                disturbance.at = rng.randint(1, max(1, len(disturbed[-1].operations) // 2))
            if kind == "time" or (kind.startswith("SIG") and rng.random() < 0.5):
                disturbance.after = rng.uniform(0, 1.1 * seconds)
            outcome = run(verb, folder, disturbance, real_report)
            disturbed_runs += 1
            disturbed.append(outcome)
            expected = {"full": (2,), "SIGINT": (0, 130), "SIGTERM": (0, 143)}.get(kind, (0, -signal.SIGKILL))
            if outcome.code not in expected or "Traceback" in outcome.said:
                wrong.append(f"{disturbance} ended with {outcome.code}: {outcome.said[-2000:]}")
            if kind == "full" and (outcome.said.count("promptprior: ") != 1 or "tried again" in outcome.said):
                wrong.append(f"a full disk is told in one message: {outcome.said[-2000:]}")
            if kind not in ("kill", "time"):
                wrong += [f"{disturbance} left {name}" for name in leftovers(iter(contents(folder)))]
            left = contents(folder)
            was_finished |= all(left.get(name) == data for name, data in reference.items())
            if outcome.code == 0:
                break
        last = run(verb, folder, None, real_report)
        # A finished adapt keeps no checkpoint: the command begins again, as it always did.
        steps = whole.steps * (2 if was_finished and verb in ("adapt", "guard") else 1)
        wrong += problems(reference, folder, disturbed, last, steps)
        failures += [f"{verb}, {[d.operations[-1:] for d in disturbed]}, {kind}: {text}" for text in wrong]
        shutil.rmtree(folder)
    shutil.rmtree(base / "reference")
    return {"verb": verb, "kind": kind, "disturbed": disturbed_runs, "failures": failures, "seconds_alone": seconds,
            "operations": len(whole.operations)}  # fmt: skip


if __name__ == "__main__":
    seed, *pieces = sys.argv[1:]  # pieces: VERB:DISTURBANCE:COUNT, or VERB:removal, or VERB:each
    results = list[dict[str, Any]]()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with scene() as base:
        for verb, kind, *count in (piece.split(":") for piece in pieces):
            once = [] if count else [kill_each(base, verb, kind)]
            results += once or [experiment(base, verb, kind, int(count[0]), int(seed))]
    print(json.dumps(results, indent=1))
    sys.exit(any(result["failures"] for result in results))

"""Hostile command lines as a table: what lies in the folder, what is typed, and whether it must be refused.

A refusal is one message that starts with ``promptprior:``, exit code 2, no traceback, and a folder that holds what it
held before. Every case runs in a process of its own, with 3 GiB of memory beyond what Python and its libraries map and
10 seconds of CPU (see `tests.hostile.server`).
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
LARGEST_HASHED = 2**25  # bytes; a file of holes is not read
LONGEST_MESSAGE = 4000  # characters; a message that writes out a hostile value is itself an attack

Content = str | bytes | Callable[[Path], object]
"""A file's text or bytes, or a function that makes the file at the path it is given."""

TINY = ("--backbone", "MODEL", "--dtype", "float32", "--length", "3", "--shots", "1")
SHORT = ("--target.steps", "2", "--target.batch-size", "2", "--target.eval-every", "0", "--test-limit", "4")


@dataclass(frozen=True)
class Case:
    """One command line. `refused` is a pattern of the message; without it the command must be accepted.

    `words` may name MODEL, a tiny backbone, and PROMPT, a prompt of three tokens for the task GOOD, a data file that
    is fine. `prints` is a pattern of what an accepted command prints.
    """

    name: str
    words: Sequence[str]
    files: Mapping[str, Content] = field(default_factory=dict)
    refused: str = ""
    prints: str = ""
    env: Mapping[str, str | None] = field(default_factory=dict)
    as_nobody: bool = False
    cpu_seconds: int = 10
    closed_name: str = ""

    def __str__(self) -> str:
        return self.name

    def closed(self) -> "Case":
        """The case as a user who may not open its first file, or the folder that holds it (root may open all)."""
        top = next(iter(self.files)).split("/")[0]
        return replace(self, as_nobody=True, closed_name=top)


@dataclass(frozen=True)
class Outcome:
    """How a command line ended: exit code (negative for a signal), what it printed, and the seconds it took."""

    code: int
    out: str
    err: str
    seconds: float


class ForkServer:
    """Runs command lines, each in a fork of one process that has imported everything."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        paths = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=shared,
        )
        self._make_shared()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def run(self, case: Case, folder: Path) -> Outcome:
        """Run a case's words in `folder`, which holds its files already."""
        named = {name: str(self.shared / name.lower()) for name in ("MODEL", "PROMPT")}
        named["GOOD"] = str(self.shared / "good.csv")
        streams = {name: Path(tempfile.mkstemp(prefix=f"hostile-{name}-")[1]) for name in ("stdout", "stderr")}
        for path in streams.values():
            path.chmod(0o666)
        request = {
            "words": [named.get(word, word) for word in case.words],
            "folder": str(folder),
            "env": dict(case.env),
            "as_nobody": case.as_nobody and os.geteuid() == 0,
            "gib": 3,
            "cpu_seconds": case.cpu_seconds,
            "wall_seconds": 60,
            **{name: str(path) for name, path in streams.items()},
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        texts = [path.read_text(errors="replace") for path in streams.values()]
        for path in streams.values():
            path.unlink()
        return Outcome(answer["code"], *texts, answer["seconds"])

    def check(self, case: Case) -> Outcome:
        """Run a case in a new folder and assert that it ends as it must."""
        folder = Path(tempfile.mkdtemp(prefix="hostile-"))
        folder.chmod(0o777)  # pytest's own folders are closed to `nobody`
        try:
            for name, content in case.files.items():
                _write(folder / name, content)
            before = _snapshot(folder)
            if case.closed_name:
                mode = (folder / case.closed_name).stat().st_mode
                (folder / case.closed_name).chmod(0)
            outcome = self.run(case, folder)
            if case.closed_name:
                (folder / case.closed_name).chmod(mode)
            after = _snapshot(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        told = f"{case.name}: exit code {outcome.code} after {outcome.seconds:.1f} s\n{outcome.out}\n{outcome.err}"[
            -6000:
        ]
        assert "Traceback (most recent" not in outcome.err, told
        assert {name: after.get(name) for name in before} == before, f"inputs changed\n{told}"
        if not case.refused:
            assert outcome.code == 0, told
            assert re.search(case.prints, outcome.out), told
            return outcome
        assert outcome.code == 2, told
        messages = re.findall(r"^promptprior: ", outcome.err, re.MULTILINE)
        assert len(messages) == 1, told
        message = outcome.err[outcome.err.index("promptprior: ") :]
        assert re.search(case.refused, message), told
        assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters\n{told[:2000]}"
        assert after == before, f"left behind: {sorted(after.keys() - before.keys())}\n{told}"
        return outcome

    def _make_shared(self) -> None:
        # a tiny backbone, a data file that is fine, and a prompt for it
        from tests.backbone.tiny import saved_model

        saved_model(self.shared / "model")
        (self.shared / "good.csv").write_text(GOOD_CSV)
        words = ["adapt", "--target", "GOOD", *TINY, *SHORT, "--output", str(self.shared / "prompt")]
        outcome = self.run(Case("shared prompt", words), self.shared)
        assert outcome.code == 0, outcome.err


GOOD_ROWS = [{"text": f"text {'ae'[i % 2]} number {i}", "label": ("low", "high")[i % 2]} for i in range(40)]
GOOD_CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in GOOD_ROWS)


def jsonl(*rows: object) -> str:
    """Rows as JSON lines; a row that is text stands as it is. Good rows follow, so that nothing else is wrong."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return "".join(f"{line}\n" for line in [*map(json.dumps, GOOD_ROWS), *lines])


def _write(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _snapshot(folder: Path) -> dict[str, str]:
    # every name below a folder with what stands there; links are not followed
    names: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        whole = stat.S_ISREG(status.st_mode) and status.st_size < LARGEST_HASHED
        names[str(path.relative_to(folder))] = (
            sha256(path.read_bytes()).hexdigest() if whole else f"{status.st_mode:o} {status.st_size}"
        )
    return names

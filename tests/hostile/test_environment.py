"""Hostile surroundings: processes, homes, devices, outputs, streams."""

# ruff: noqa: E501  # tables of cases, a case a line

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.harness import REPOSITORY, SHORT, TINY, Case, Content, ForkServer

ADAPT = ("adapt", "--target", "GOOD", *TINY, *SHORT)


def adapt(name: str, *words: str, refused: str, files: dict[str, Content] | None = None, **env: str | None) -> Case:
    output = () if "--output" in words else ("--output", "out")
    return Case(name, (*ADAPT, *words, *output), files or {}, refused, env=env)


def verb(name: str, *words: str, refused: str, files: dict[str, Content] | None = None, **env: str | None) -> Case:
    return Case(name, words, files or {}, refused, env=env)


CASES = [
    adapt("two processes without a rank", refused="WORLD_SIZE is 2 and RANK.*unset", WORLD_SIZE="2"),
    adapt("no process", refused="WORLD_SIZE is '0'", WORLD_SIZE="0"),
    adapt("minus one process", refused="WORLD_SIZE is '-1'", WORLD_SIZE="-1"),
    adapt("abc processes", refused="WORLD_SIZE is 'abc'", WORLD_SIZE="abc"),
    adapt("1.5 processes", refused="WORLD_SIZE is '1.5'", WORLD_SIZE="1.5"),
    adapt("rank beyond", refused="RANK is '7'", WORLD_SIZE="2", RANK="7", MASTER_ADDR="localhost", MASTER_PORT="1"),
    adapt("rank x", refused="RANK is 'x'", WORLD_SIZE="2", RANK="x", MASTER_ADDR="localhost", MASTER_PORT="1"),
    adapt("no address", refused="MASTER_ADDR", WORLD_SIZE="2", RANK="0"),
    verb("report in two processes", "report", "x", refused="report runs in one process", WORLD_SIZE="2"),
    *(
        adapt(f"device {device!r}", "--device", device, refused="--device")
        for device in ("cuda", "cuda:99", "mps", "meta", "zebra", "", "cpu:3", "cuda:-1", "xpu", "privateuseone", "CPU ")
    ),
    adapt("dtype zebra", "--dtype", "zebra", refused="given twice|dtype"),
    adapt("output .", "--output", ".", refused="--output"),
    adapt("output ..", "--output", "..", refused="--output"),
    adapt("output of no name", "--output", "", refused="--output"),
    adapt("output /", "--output", "/", refused="--output"),
    adapt("output of 300 characters", "--output", "a" * 300, refused="--output"),
    adapt("output of 250 characters", "--output", "a" * 250, refused="--output"),
    adapt("output of 5000 characters", "--output", "a/" * 2500, refused="--output"),
    adapt("output is a file", "--output", "f", refused=r"f \(--output\): f exists and is not what promptprior adapt wrote", files={"f": "mine"}),
    adapt("output below a file", "--output", "f/out", refused="--output.*is a file", files={"f": "mine"}),
    adapt("output with NUL", "--output", "a\0b", refused="--output"),
    adapt("output not UTF-8", "--output", "a\udcff", refused="UTF-8"),
    adapt("output in /proc", "--output", "/proc/out", refused="/proc"),
    adapt("tensorboard is a file", "--tensorboard", "f", refused="--tensorboard", files={"f": "mine"}),
    adapt("tensorboard below a file", "--tensorboard", "f/a", refused="--tensorboard", files={"f": "mine"}),
    adapt("mlflow is a file", "--mlflow", "f", refused="--mlflow", files={"f": "mine"}),
    adapt("mlflow of no name", "--mlflow", "", refused="--mlflow"),
    verb("fit to /", "fit", "--sources", "GOOD", *TINY[:-2], "--output", "/", refused="--output"),
    verb("fit to no name", "fit", "--sources", "GOOD", *TINY[:-2], "--output", "", refused="--output"),
    verb("compare to /", "compare", "--targets", "GOOD", "--methods", "zero_shot", *TINY[:4], "--output", "/", refused="--output"),
    verb("report to no name", "report", "r.jsonl", "--output", "", refused="--output", files={"r.jsonl": "{}"}),
    verb("report below a file", "report", "r.jsonl", "--csv", "r.jsonl/a", refused="--csv", files={"r.jsonl": "{}"}),
    verb("title not UTF-8", "report", "r.jsonl", "--title", "\udcff", refused="UTF-8", files={"r.jsonl": "{}"}),
    verb("help of a zebra", "help", "zebra", refused="unknown verb 'zebra'"),
    verb("zebra", "zebra", refused="unknown verb 'zebra'"),
    verb("help of no word", "help", "", refused="unknown verb ''"),
    verb("no word", "", refused="unknown verb ''"),
    verb("completion for a zebra", "--print-completion", "zebra", refused="zebra"),
    verb("cache is a file", *ADAPT[:3], "--backbone", "x.gguf", "--output", "out", refused="PROMPTPRIOR_CACHE", files={"c": "", "x.gguf": b"GGUF"}, PROMPTPRIOR_CACHE="c"),
    verb("home is a file", *ADAPT[:3], "--backbone", "x.gguf", "--output", "out", refused="PROMPTPRIOR_CACHE", files={"c": "", "x.gguf": b"GGUF"}, HOME="c", XDG_CACHE_HOME=None, PROMPTPRIOR_CACHE=None),
    Case("home may not be written", (*ADAPT[:3], "--backbone", "x.gguf", "--output", "out"), {"x.gguf": b"GGUF"}, "PROMPTPRIOR_CACHE", env={"HOME": "/proc/1", "XDG_CACHE_HOME": None, "PROMPTPRIOR_CACHE": None}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_surroundings_that_cannot_work_are_refused(case: Case, server: ForkServer) -> None:
    server.check(case)


ACCEPTED = [
    Case("one process", ("tasks", "show", "GOOD"), env={"WORLD_SIZE": "1"}),
    Case("an empty number of processes", (*ADAPT, "--dry-run", "--output", "out"), env={"WORLD_SIZE": ""}),
    Case("a relative output", (*ADAPT, "--dry-run", "--output", "a/../out")),
    Case("a spot in a folder that is to be made", (*ADAPT, "--dry-run", "--output", "a/b/c")),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=str)
def test_ordinary_surroundings_are_accepted(case: Case, server: ForkServer) -> None:
    server.check(case)


@pytest.mark.parametrize(
    ("stream", "code", "message"),
    [
        ("> /dev/full", 2, "No space left"),
        (">&-", 2, "standard output is closed"),
        ("2>&-", 0, ""),
        ("< /dev/null", 0, ""),
        ("| true", 0, ""),
    ],
)
def test_streams(stream: str, code: int, message: str, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = f"{sys.executable} -m promptprior tasks list {stream}"
    done = subprocess.run(["bash", "-c", command], env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert message in done.stderr

"""Progress: lines apart from each other where nobody looks, bars on a terminal, and stdout never touched."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from promptprior.compare import progress
from promptprior.compare.progress import ProgressDisplay, duration, watch_steps

LOSS = {"loss": torch.tensor([0.5, 1.5])}


def test_lines_are_apart_by_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, heard = [0.0], list[str]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = ProgressDisplay(heard.append, total=100.0)
    for second in range(10):
        now[0] = float(second)
        display.within = 10.0 * second
        display.tell(f"at {second}", 0.5)
    assert heard == [
        "  0% at 0 · time left unknown yet",
        " 20% at 2 · 8 s left",
        " 40% at 4 · 6 s left",
        " 60% at 6 · 4 s left",
        " 80% at 8 · 2 s left",
    ]


def test_a_run_that_stands_alone_says_step_loss_and_time_left_and_always_its_last_step() -> None:
    heard = list[str]()
    watch = watch_steps("spot", say=heard.append)("source")
    for step in range(1, 5):
        watch(step, 4, LOSS)
    assert heard[0].startswith("spot · source step 1/4 · loss 1.000 · ")
    assert heard[-1] == "spot · source step 4/4 · loss 1.000 · 0 s left"
    assert len(heard) == 2


def test_durations() -> None:
    assert [duration(s) for s in (5, 75, 7300)] == ["5 s", "1 min 15 s", "2 h 1 min"]


SCRIPT = """
import sys, time, torch
from promptprior.compare.progress import ProgressDisplay, say_to_stderr, watch_steps
display = ProgressDisplay(say_to_stderr, total=10.0)
for step in range(10):
    display.within = step
    display.tell(f"spot, seed 13 · target step {step}/10", step / 10)
    if step == 5:
        print("a warning", file=sys.stderr)
display.close()
print("RESULT")
watch = watch_steps("spot")("source")
watch(1, 2, {"loss": torch.ones(1)})
print("AFTER")
"""


def on_a_terminal(stdout_too: bool) -> tuple[str, str]:
    """What the script writes to its terminal, and to its stdout where that is a pipe."""
    screen, end = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(progress.__file__).parents[2]),
        "TERM": "xterm",
        "COLUMNS": "100",
    }
    running = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=end if stdout_too else subprocess.PIPE, stderr=end, env=environment
    )
    os.close(end)
    written = b""
    while True:
        try:
            part = os.read(screen, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
    piped = running.communicate()[0] or b""
    assert running.returncode == 0
    return written.decode(), piped.decode()


def test_on_a_terminal_there_are_two_bars_and_a_piped_stdout_holds_results_only() -> None:
    screen, stdout = on_a_terminal(stdout_too=False)
    assert stdout == "RESULT\nAFTER\n"
    assert "all work" in screen
    assert "spot, seed 13 · target step 9/10" in screen
    assert "90%" in screen
    assert "a warning" in screen
    assert screen.rstrip().endswith("\x1b[?25h") or screen.count("\x1b[?25l") == screen.count("\x1b[?25h")


def test_on_one_terminal_results_stand_on_lines_of_their_own() -> None:
    screen, _ = on_a_terminal(stdout_too=True)
    assert "RESULT\r\n" in screen
    assert "AFTER" in screen

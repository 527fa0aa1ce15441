"""What is promised of killed, stopped and starved commands: give the same command again, and everything is as it would
have been, to the byte; nothing that was finished is done again, and nothing is left lying about."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SHARE = 10  # without --thorough, the part of the moments that is tried: 252 take minutes
PIECES = {
    "fit": ("kill:42", "time:8", "full:20", "SIGINT:6", "SIGTERM:6"),
    "adapt": ("kill:42", "time:8", "full:20", "SIGINT:6", "SIGTERM:6"),
    "guard": ("kill:8", "SIGTERM:2"),
    "compare": ("kill:44", "time:6", "full:20", "SIGINT:4", "SIGTERM:4"),
}


def environment(**more: str) -> Mapping[str, str]:
    path = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", **more}


@pytest.mark.skipif(sys.platform != "linux", reason="the runner forks")
# all share the harness; the others are for --thorough
@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=() if verb == "compare" else pytest.mark.slow) for verb in PIECES]
)
def test_a_disturbed_command_given_again_comes_to_the_same_bytes(verb: str, is_thorough: bool) -> None:
    counts = {kind: int(count) for kind, count in (piece.split(":") for piece in PIECES[verb])}
    least = {kind: count if is_thorough else -(-count // SHARE) for kind, count in counts.items()}
    pieces = [f"{verb}:{kind}:{count}" for kind, count in least.items()]
    command = [sys.executable, "-m", "tests.kill.runner", "13", *pieces]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout, done.stderr
    for result, count in zip(json.loads(done.stdout), least.values(), strict=True):
        assert result["failures"] == []
        assert result["disturbed"] >= count


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the runner forks")
def test_a_kill_while_checkpoints_are_removed_loses_nothing() -> None:
    """Half a checkpoint once stopped the same command for ever."""
    # and compare:removal in `make torture`: nothing resumes from those
    pieces = ["adapt:removal", "guard:removal"]
    command = [sys.executable, "-m", "tests.kill.runner", "13", *pieces]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout, done.stderr
    for result, least in zip(json.loads(done.stdout), (7, 19), strict=True):
        assert result["failures"] == []
        assert result["disturbed"] >= least


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the runner forks")
def test_a_kill_between_an_output_and_its_plan_asks_for_no_force() -> None:
    """The command once took its own output for somebody else's."""
    pieces = [f"{verb}:each" for verb in ("predict", "evaluate")]
    command = [sys.executable, "-m", "tests.kill.runner", "13", *pieces]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout, done.stderr
    for result in json.loads(done.stdout):
        assert result["failures"] == []
        assert result["disturbed"] >= 8


INTERRUPTED_AT = """
import os, signal, sys

module, name, backbone, output = sys.argv[1:]

def audit(event, args):  # when a module's code is about to run
    if event == "exec" and args[0].co_filename.endswith(module):
        os.kill(os.getpid(), getattr(signal, name))

sys.addaudithook(audit)
from promptprior.cli import main
sys.argv[1:] = ["fit", "--sources", "noun_polarity", "--steps", "3", "--backbone", backbone, "--output", output]
sys.exit(main())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["cli/entry.py", "ruamel/yaml/main.py", "torch/_tensor.py", "modeling_llama.py"])
def test_a_signal_during_start_up_ends_it_in_one_line(module: str, name: str, tmp_path: Path) -> None:
    """An exception there would abort torch's C++ code, and transformers would make a ModuleNotFoundError of it."""
    from tests.test_cli import saved_model

    model = saved_model(tmp_path / "model", seed=0) if "llama" in module else tmp_path / "nowhere"
    command = [sys.executable, "-c", INTERRUPTED_AT, module, name, str(model), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert done.stderr.startswith(f"promptprior: stopped by {name}.")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()

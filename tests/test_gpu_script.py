"""What waits for a GPU runs on the CPU, at tiny size."""

import json
import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_a_slice_runs_at_tiny_size(tmp_path: Path) -> None:
    settings = {**os.environ, "DRY_RUN": "1", "GPU_OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = ["bash", "experiments/gpu.sh", "sizes"]
    subprocess.run(command, cwd=REPOSITORY, env=settings, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "sizes.jsonl").read_text().splitlines()]
    assert [row["side"] for row in rows] == ["plain", "peft"]
    assert all(row["seconds"] > 0 and row["tokens_per_s"] > 0 and row["case"].startswith("tiny/") for row in rows)


def test_every_slice_that_is_named_exists() -> None:
    script = (REPOSITORY / "experiments/gpu.sh").read_text()
    named = [line.split()[1] for line in script.splitlines() if line.startswith("#   ") and line.split()[1].islower()]
    slices = [name for name in named if f"\n{name}() {{" in script]
    assert slices == ["check", "equal", "methods", "sizes", "bars", "study"]
    assert "${@:-check equal methods sizes bars study}" in script
    assert (REPOSITORY / "experiments/core.yaml").exists()

"""What the tests of executors share: the tasks of a small grid, and what a finished comparison comes to."""

import hashlib
import json
from pathlib import Path

from promptprior.compare import run
from promptprior.compare.plan import Plan
from promptprior.config.training import Settings, Training

SETTINGS = Settings(
    length=3, source=Training(steps=6, batch_size=4), target=Training(steps=4, batch_size=2, eval_every=2)
)
SPLITS = {"train": 24, "validation": 6, "test": 8}


def write_task(folder: Path, letters: str) -> None:
    """Which of two letters a row's text holds."""
    folder.mkdir(parents=True)
    for split, count in SPLITS.items():
        rows = [
            {"id": f"{split}-{i}", "text": f"{split} {letters[i % 2] * 3} {i}", "label": ("low", "high")[i % 2]}
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def rows_of(plan: Plan) -> dict[str, str]:
    """Every row as its bytes, without what depends on the clock, by cell."""
    rows = [json.loads(line) for line in (plan.output / run.RESULTS).read_text().splitlines()]
    for row in rows:
        del row["cost"]["seconds"], row["cost"]["source_seconds"]
    assert len({row["cell"] for row in rows}) == len(rows), "a cell stands there twice"
    return {row["cell"]: json.dumps(row) for row in rows}


def artifacts_of(plan: Plan) -> dict[str, str]:
    """Digests of all tensors that are kept."""
    files = plan.output.glob("*/**/*.safetensors")
    return {str(f.relative_to(plan.output)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

"""A comparison whose sources are prompts that others trained: no source task, and cells keyed by the numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.compare import run
from promptprior.compare.plan import Plan, Tasks, cells
from promptprior.compare.run import RESULTS
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.report.results import read_rows
from tests.backbone.tiny import tiny
from tests.world import choice_task, early

TARGET = choice_task("target", early, size=12)
SHORT = Settings(length=3, source=Training(steps=2), target=Training(steps=1, batch_size=2))


@pytest.fixture
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(run, "load_task", lambda *_: TARGET)
    monkeypatch.setattr(run, "missing_tasks", lambda *_: [])
    for name in ("mnli", "qqp"):
        np.save(tmp_path / f"{name}.npy", np.full((3, 32), 0.1, dtype=np.float32) * len(name))
    paths = [str(tmp_path / "mnli.npy"), str(tmp_path / "qqp.npy")]
    return Plan(
        methods=("spot", "attempt"),
        targets=("target",),
        shots=(2,),
        seeds=(13,),
        settings=SHORT,
        output=tmp_path / "out",
        options={"spot": {"source_prompts": paths}, "attempt": {"source_prompts": paths, "rank": 2}},
    )


def test_methods_with_given_prompts_need_no_source_task(plan: Plan, backbone: Backbone) -> None:
    run.compare(plan, backbone, lambda _: None)
    rows = read_rows(plan.output / RESULTS)
    assert [(r.method, r.status, r.sources) for r in rows] == [(m, "ok", ("mnli", "qqp")) for m in ("spot", "attempt")]
    assert len(list((plan.output / "priors").iterdir())) == 1  # one source stage for both
    attention = rows[1].diagnostics["attention"]["target"]
    assert list(attention["weights"]) == ["mnli", "qqp", "target"]
    with pytest.raises(SpecError, match=r"multitask learn from source tasks: name some \(--sources\)"):
        replace(plan, methods=("spot", "multitask", "attempt"))


def test_other_numbers_in_the_same_file_make_other_cells(plan: Plan, backbone: Backbone, tmp_path: Path) -> None:
    tasks = Tasks((), (TARGET,), {})
    before = [cell.key for cell in cells(plan, tasks, backbone)]
    assert [cell.key for cell in cells(plan, tasks, backbone)] == before
    np.save(tmp_path / "mnli.npy", np.ones((3, 32), dtype=np.float32))
    assert not set(before) & {cell.key for cell in cells(plan, tasks, backbone)}

"""A small grid of cells, and what one process makes of it: what every executor must give."""

import pytest
import torch

from promptprior.compare import run
from promptprior.compare.plan import Plan
from tests.backbone.tiny import saved_model
from tests.compare.grid import SETTINGS, write_task


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A small grid of a saved tiny model and tasks in files, as every machine would read them."""
    home = tmp_path_factory.mktemp("ray")
    saved_model(home / "model")
    for name, letters in {"vowels": "ae", "sounds": "st", "edges": "xz", "other": "kl"}.items():
        write_task(home / "data" / name, letters)
    return Plan(
        methods=("zero_shot", "prompt_tuning", "multitask", "spot"),
        sources=("vowels", "sounds"),
        targets=("edges", "other"),
        shots=(2,),
        seeds=(13, 21),
        data=home / "data",
        backbone=str(home / "model"),
        dtype="float32",
        device="cpu",
        settings=SETTINGS,
        cells_per_run=1,
        output=home / "local",
    )


@pytest.fixture(scope="module")
def local(plan: Plan) -> Plan:
    """The same, run in this process, with one thread as each worker has."""
    torch.set_num_threads(1)
    run.compare(plan, say=lambda _: None)
    return plan

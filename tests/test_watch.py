"""TensorBoard gets every number of every step; several watchers all hear."""

import time
from pathlib import Path

import pytest
import torch

from promptprior.watch import combine_watchers, tensorboard


def test_tensorboard_holds_what_was_reported(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watch = tensorboard(tmp_path)("source")
    assert watch is not None
    for step in (1, 2):
        watch(step, 2, {"loss": torch.tensor([step * 1.0, step * 2.0]), "norm": torch.tensor(0.5)})
    log = events.EventAccumulator(str(tmp_path / "source"))
    log.Reload()
    assert [e.value for e in log.Scalars("loss/copy1")] == [2.0, 4.0]
    assert [e.step for e in log.Scalars("norm")] == [1, 2]


def test_a_run_that_goes_on_from_a_checkpoint_has_no_point_twice(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps, value in ((range(1, 6), 1.0), (range(4, 9), 2.0)):
        time.sleep(1.01)  # files are read in the order of their names: whole seconds, then a number that sorts as text
        watch = tensorboard(tmp_path)("source")
        assert watch is not None
        for step in steps:
            watch(step, max(steps), {"loss": torch.tensor(value)})
    log = events.EventAccumulator(str(tmp_path / "source"))
    log.Reload()
    points = [(e.step, e.value) for e in log.Scalars("loss")]
    assert points == [(step, 1.0 if step < 4 else 2.0) for step in range(1, 9)]


def test_all_watchers_hear_and_stages_without_a_watcher_are_quiet() -> None:
    heard: list[int] = []
    watch = combine_watchers([lambda _: lambda step, steps, info: heard.append(step), lambda _: None])("any")
    assert watch is not None
    watch(7, 9, {})
    assert heard == [7]

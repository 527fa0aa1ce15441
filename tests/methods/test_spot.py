"""SPoT finds the source that is the target in disguise."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from promptprior.adapt import make_episode
from promptprior.artifacts.artifact import Prior
from promptprior.config.training import Settings, Training
from promptprior.fit import RunControl, fit, make_run_context
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.shared.source_prompts import source_similarities
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, short

ANSWERS = ("red", "no", "it was")


def settings() -> Settings:
    source = Training(steps=25, batch_size=12, learning_rates=(0.3,), schedule="constant")
    target = Training(steps=1, batch_size=8, learning_rates=(0.3,))
    return short(source=source, target=target)


def test_the_target_starts_from_the_source_with_its_answers() -> None:
    backbone = tiny("llama", torch.float32)
    sources = [choice_task(f"s{i}", always(i), ANSWERS) for i in range(3)]
    prior = fit(Spot(), sources, backbone, settings())
    assert prior.header.diagnostics["sources"] == ["s0", "s1", "s2"]
    targets = [make_episode(choice_task(f"t{i}", always(i), ANSWERS), 8, 13) for i in range(3)]
    context = make_run_context(backbone, settings(), RunControl())
    begun = Spot(probe_steps=25).init(context, [prior] * 3, targets).params["prompt"]
    for place in range(3):
        assert torch.equal(begun[place], prior.params["prompt"][place]), f"target {place} starts elsewhere"


def test_source_prompts_share_one_start_and_train_apart() -> None:
    backbone = tiny("llama", torch.float32)
    sources = [choice_task(f"s{i}", always(i), ANSWERS) for i in range(3)]
    prior = fit(Spot(), sources, backbone, settings())
    start, prompts = prior.params["start"], prior.params["prompt"]
    assert torch.equal(start[0], start[2])
    alone = settings()
    alone = replace(alone, source=replace(alone.source, batch_size=4))  # a third of the rows for a third of the tasks
    for place, source in enumerate(sources):
        torch.testing.assert_close(
            fit(Spot(), [source], backbone, alone).params["prompt"][0], prompts[place], rtol=1e-3, atol=1e-3
        )


def test_similarities_are_cosines_of_what_training_added_to_the_mean_token() -> None:
    backbone, quick = tiny("llama", torch.float32), short(source=Training(steps=1, batch_size=4))
    task = choice_task("s", always(0), ANSWERS)
    fitted = fit(Spot(), [task], backbone, quick)
    start = fitted.params["start"][0]  # [L, D]
    added = torch.zeros(3, *start.shape)
    added[0, 0, 0], added[1, 0, 1], added[1, 1, 1], added[2, :, 0] = 2.0, 3.0, 1.0, -1.0
    prior = Prior(fitted.header, {"prompt": start + added, "start": start.expand_as(added)})
    probe = start.clone()
    probe[:, :2] += 1.0
    context = make_run_context(backbone, quick, RunControl())
    trained: Any = lambda run, stage: SimpleNamespace(last={"prompt": probe[None]})  # noqa: E731
    [found] = source_similarities(replace(context, train=trained), [prior], [make_episode(task, 8, 13)], 1)
    assert found.tolist() == pytest.approx([0.5**0.5, 0.5**0.5, -(0.5**0.5)], abs=1e-5)


def test_retrieval_by_hand() -> None:
    bank = torch.arange(3.0).view(3, 1, 1)
    assert Spot().retrieve(bank, torch.tensor([0.1, -0.5, 0.3])).item() == 2
    weighted = Spot(retrieval="weighted", top=2)
    assert weighted.retrieve(bank, torch.tensor([0.1, -0.5, 0.3])).item() == pytest.approx(2 * 0.75, abs=1e-4)
    assert weighted.retrieve(bank, torch.tensor([-0.1, -0.5, -0.3])).item() in (0.5, 1.0, 1.5)
    assert Spot(retrieval="weighted", top=9).retrieve(bank, torch.ones(3)).item() == pytest.approx(1.0)

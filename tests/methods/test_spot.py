"""SPoT finds the source that is the target in disguise."""

from dataclasses import replace

import pytest
import torch

from promptprior.adapt import make_episode
from promptprior.config.training import Settings, Training
from promptprior.fit import RunControl, fit, make_run_context
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.shared.source_prompts import embedding_cosines
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


def test_cosines_compare_mean_tokens() -> None:
    bank = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[0.0, 3.0], [0.0, 1.0]], [[-1.0, 0.0], [-1.0, 0.0]]])
    assert embedding_cosines(bank, torch.tensor([[1.0, 1.0], [1.0, 1.0]])).tolist() == pytest.approx(
        [0.5**0.5, 0.5**0.5, -(0.5**0.5)]
    )


def test_retrieval_by_hand() -> None:
    bank = torch.arange(3.0).view(3, 1, 1)
    assert Spot().retrieve(bank, torch.tensor([0.1, -0.5, 0.3])).item() == 2
    weighted = Spot(retrieval="weighted", top=2)
    assert weighted.retrieve(bank, torch.tensor([0.1, -0.5, 0.3])).item() == pytest.approx(2 * 0.75, abs=1e-4)
    assert weighted.retrieve(bank, torch.tensor([-0.1, -0.5, -0.3])).item() in (0.5, 1.0, 1.5)
    assert Spot(retrieval="weighted", top=9).retrieve(bank, torch.ones(3)).item() == pytest.approx(1.0)

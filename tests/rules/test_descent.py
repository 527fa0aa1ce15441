"""Descent: copies of one run move exactly as in runs of their own."""

import pytest
import torch

from promptprior.notation import Params
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.rules.descent import Descent, with_penalty
from promptprior.rules.optimiser import Adafactor, AdamW, Optimiser, Rate, Sgd
from promptprior.rules.rule import State
from promptprior.tasks.sampling.batch import Tokens
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool
from tests.backbone.tiny import TrueFloat64, tiny
from tests.world import random_batch

LENGTH, STEPS = 3, 20
RATES = (0.05, 0.1, 0.2, 0.4)


@pytest.fixture(autouse=True)
def true_float64():
    with TrueFloat64():
        yield


def some_tokens(seed: int, count: int = 5) -> list[Tokens]:
    batch = random_batch(count, seed=seed)
    return [
        Tokens(
            tuple(batch.text_ids[x, : batch.text_lengths[x]].tolist()),
            (tuple(batch.target_ids[x, : batch.target_lengths[x]].tolist()),),
        )
        for x in range(count)
    ]


def walk(rule: Descent, made: PromptObjective, start: Params, draws: EpisodeDraws) -> tuple[State, list[torch.Tensor]]:
    state, losses = rule.init(start), []
    for step in range(STEPS):
        state, info = rule.step(state, draws.batch(step), made)
        losses.append(info["loss"])
    return state, losses


@pytest.mark.parametrize("kind", [AdamW, Adafactor, Sgd])
def test_twenty_joint_steps_of_four_copies_are_four_separate_runs(kind: type[Optimiser]) -> None:
    backbone = tiny("llama", max_tokens=80)
    made = PromptObjective(backbone, Direct(LENGTH, backbone.width))
    start = torch.randn(4, LENGTH, backbone.width, dtype=torch.float64) * backbone.scale
    scale = backbone.scale
    pools = [some_tokens(seed) for seed in range(4)]
    seeds = [13, 21, 42, 87]

    def rule(rates: tuple[float, ...]) -> Descent:
        return Descent(kind(Rate(rates, scale, "linear", STEPS, warmup=2)), clip=0.5)  # type: ignore[call-arg]

    joint, losses = walk(
        rule(RATES),
        made,
        {"prompt": start.clone()},
        EpisodeDraws([Pool(p, copy=c) for c, p in enumerate(pools)], 2, seeds),
    )
    for c in range(4):
        single, own = walk(
            rule(RATES[c : c + 1]), made, {"prompt": start[c : c + 1]}, EpisodeDraws([Pool(pools[c])], 2, [seeds[c]])
        )
        torch.testing.assert_close(joint.params["prompt"][c], single.params["prompt"][0], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(torch.stack(losses)[:, c], torch.stack(own)[:, 0], rtol=1e-7, atol=1e-9)
        assert bool((joint.params["prompt"][c] != start[c]).all())
    assert joint.step == STEPS


def test_the_penalty_adds_its_own_gradient_to_every_copy() -> None:
    centre = torch.arange(3.0).view(3, 1, 1)
    params = {"prompt": torch.full((3, 2, 2), 5.0), "unused": torch.ones(3, 1)}
    gradient = {"prompt": torch.ones(3, 2, 2), "unused": torch.ones(3, 1)}
    value, added = with_penalty(lambda p: ((p["prompt"] - centre) ** 2).sum((1, 2)), params, gradient)
    assert value.tolist() == [100, 64, 36]
    assert torch.equal(added["prompt"], 1 + 2 * (5 - centre).expand(3, 2, 2))
    assert torch.equal(added["unused"], gradient["unused"])
    assert not params["prompt"].requires_grad


def test_a_strong_penalty_holds_a_copy_where_its_prior_is() -> None:
    backbone = tiny("llama")
    made = PromptObjective(backbone, Direct(LENGTH, backbone.width))
    start = torch.randn(1, LENGTH, backbone.width, dtype=torch.float64).repeat(2, 1, 1) * backbone.scale
    strength = torch.tensor([0.0, 1e6], dtype=torch.float64)
    rule = Descent(
        AdamW(Rate((0.1,), backbone.scale, "linear", STEPS)),
        penalty=lambda p: strength * ((p["prompt"] - start) ** 2).sum((1, 2)),
    )
    draws = EpisodeDraws([Pool(some_tokens(1), copy=c) for c in range(2)], 4, [13, 13])
    state, _ = walk(rule, made, {"prompt": start.clone()}, draws)
    distance = (state.params["prompt"] - start).flatten(1).norm(dim=1)
    assert distance[1] < 0.2 * distance[0]
    batch = draws.batch(0)
    _, info = rule.step(rule.init({"prompt": start + 0.01}), batch, made)
    assert info["penalty"].tolist() == pytest.approx([0, 1e6 * 1e-4 * LENGTH * backbone.width])
    torch.testing.assert_close(info["loss"][0], info["loss"][1])  # the loss is reported without the penalty


def test_a_step_is_pure_and_reports_the_norm_before_clipping() -> None:
    backbone = tiny("llama")
    made = PromptObjective(backbone, Direct(LENGTH, backbone.width))
    rule = Descent(Sgd(Rate((1.0,))), clip=1e-3)
    start = rule.init({"prompt": torch.randn(2, LENGTH, backbone.width, dtype=torch.float64)})
    kept = start.params["prompt"].clone()
    batch = random_batch(4, [0, 0, 1, 1])
    after, info = rule.step(start, batch, made)
    again, _ = rule.step(start, batch, made)
    assert torch.equal(start.params["prompt"], kept)
    assert torch.equal(after.params["prompt"], again.params["prompt"])
    assert (start.step, after.step) == (0, 1)
    moved = (after.params["prompt"] - kept).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, torch.full((2,), 1e-3, dtype=torch.float64))
    assert bool((info["gradient_norm"] > 1e-3).all())

"""Optimisers against torch's and transformers', copy by copy."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import Adafactor as PublishedAdafactor

from promptprior.config.training import Training
from promptprior.errors import SpecError
from promptprior.methods.published import published_settings
from promptprior.notation import Memory, Params
from promptprior.rules.optimiser import Adafactor, AdamW, Optimiser, Rate, Sgd, optimiser, optimiser_step, stage_rate
from promptprior.rules.rule import State

SHAPES = {"prompt": (5, 7), "gate": (3,), "depth": ()}
COPIES, STEPS = 3, 8
KINDS: dict[str, Callable[..., Optimiser]] = {
    "adamw": lambda rate, decay=0.1: AdamW(rate, weight_decay=decay),
    "adafactor": lambda rate, decay=0.1: Adafactor(rate, weight_decay=decay),
    "sgd": lambda rate, decay=0.0: Sgd(rate),
    "momentum": lambda rate, decay=0.0: Sgd(rate, momentum=0.9),
}


def some(seed: int, copies: int = COPIES) -> Params:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(copies, *s, generator=g, dtype=torch.float64) for n, s in SHAPES.items()}


def gradients() -> list[Params]:
    return [some(100 + step) for step in range(STEPS)]


def moved(made: Optimiser, params: Params, given: list[Params]) -> Params:
    memory = made.init(params)
    for step, gradient in enumerate(given):
        params, memory = made.update(gradient, memory, params, step)
    return params


class Recording(Sgd):
    """Hands the gradient back in place of moved params."""

    def update(self, gradient: Params, memory: Memory, params: Params, step: int) -> tuple[Params, Memory]:
        return gradient, memory


def clipped(gradient: Params, most: float | None) -> tuple[Params, torch.Tensor]:
    state, info = optimiser_step(Recording(Rate((1.0,))), most, State(some(0), {}), gradient, {})
    return state.params, info["gradient_norm"]


def one(params: Params, copy: int) -> Params:
    return {n: v[copy : copy + 1] for n, v in params.items()}


def theirs(make: Callable[[list[torch.Tensor]], torch.optim.Optimizer], copy: int) -> Params:
    """What another library's optimiser does with one copy alone, each parameter without its copies axis."""
    leaves = {n: v[copy].clone().requires_grad_() for n, v in some(0).items()}
    made = make(list(leaves.values()))
    for gradient in gradients():
        for name, leaf in leaves.items():
            leaf.grad = gradient[name][copy].clone()
        made.step()
    return {n: v.detach()[None] for n, v in leaves.items()}


ORACLES: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "adamw": lambda leaves: torch.optim.AdamW(leaves, lr=0.05, weight_decay=0.1),
    "adafactor": lambda leaves: PublishedAdafactor(
        leaves, lr=0.05, relative_step=False, scale_parameter=False, weight_decay=0.1
    ),
    "sgd": lambda leaves: torch.optim.SGD(leaves, lr=0.05),
    "momentum": lambda leaves: torch.optim.SGD(leaves, lr=0.05, momentum=0.9),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copy", range(COPIES))
def test_every_copy_moves_as_the_published_optimiser_moves_it(kind: str, copy: int) -> None:
    joint = moved(KINDS[kind](Rate((0.05,))), some(0), gradients())
    for name, expected in theirs(ORACLES[kind], copy).items():
        torch.testing.assert_close(joint[name][copy : copy + 1], expected, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("scale", [0.136, 1.0, 10.0])
@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_a_published_decay_is_the_same_number_at_every_embedding_scale(kind: str, scale: float) -> None:
    """The published optimiser has the absolute rate, ours that rate over the scale; both the same decay."""
    ours = moved(KINDS[kind](Rate((0.05 / scale,), scale=scale)), some(0), gradients())
    undecayed = moved(KINDS[kind](Rate((0.05 / scale,), scale=scale), 0.0), some(0), gradients())
    for name, expected in theirs(ORACLES[kind], 1).items():
        torch.testing.assert_close(ours[name][1:2], expected, rtol=1e-6, atol=1e-9, msg=name)
        assert not torch.allclose(ours[name], undecayed[name], rtol=1e-3)


@pytest.mark.parametrize("scale", [0.136, 1.0, 10.0])
def test_absolute_rates_move_as_a_published_optimiser_does(scale: float) -> None:
    stage = Training(learning_rates=(0.05,), rate_unit="absolute", schedule="constant")
    made = KINDS["adamw"](stage_rate(stage, stage.learning_rates, scale))
    ours = moved(made, some(0), gradients())
    for name, expected in theirs(ORACLES["adamw"], 1).items():
        torch.testing.assert_close(ours[name][1:2], expected, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("scale", [0.136, 10.0])
@pytest.mark.parametrize("name", ["maml", "mpt"])
def test_published_settings_take_the_published_part_of_a_prompt_away(name: str, scale: float) -> None:
    """A gradient of 0 leaves decay alone: lr x decay of every entry, with the papers' absolute rates of 0.5 and 0.3."""
    stage = replace(published_settings(name, scale, 3200, 320).source, schedule="constant", warmup=0)
    made = optimiser(stage.optimiser, stage_rate(stage, stage.learning_rates, scale), stage.weight_decay)
    params = {"prompt": torch.full((1, 3, 4), scale, dtype=torch.float64)}
    after, _ = made.update({"prompt": torch.zeros(1, 3, 4, dtype=torch.float64)}, made.init(params), params, 0)
    part = {"maml": 0.5e-5, "mpt": 0.3e-5}[name]
    assert (1 - after["prompt"] / scale).flatten().tolist() == pytest.approx([part] * 12, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_together_equal_copies_apart(kind: str) -> None:
    """Bit for bit, also where every copy has its own rate."""
    rates = (0.01, 0.1, 1.0)
    joint = moved(KINDS[kind](Rate(rates)), some(0), gradients())
    for copy in range(COPIES):
        alone = moved(
            KINDS[kind](Rate(rates[copy : copy + 1])), one(some(0), copy), [one(g, copy) for g in gradients()]
        )
        for name, value in alone.items():
            assert torch.equal(joint[name][copy : copy + 1], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_updates_leave_what_they_are_given_as_it_was(kind: str) -> None:
    made, params, gradient = KINDS[kind](Rate((0.1,))), some(0), some(1)
    _, memory = made.update(gradient, made.init(params), params, 0)
    kept = {n: v.clone() for n, v in memory.items()}
    made.update(gradient, memory, params, 1)
    assert all(torch.equal(v, kept[n]) for n, v in memory.items())
    assert all(torch.equal(v, some(0)[n]) for n, v in params.items())
    assert all(torch.equal(v, some(1)[n]) for n, v in gradient.items())


@pytest.mark.parametrize("kind", KINDS)
def test_rates_are_in_units_of_the_scale(kind: str) -> None:
    """The same problem in units twice as large: params twice as large, gradients half, every move twice as large.

    Decay takes its part per absolute rate, so half of it there is as much.
    """
    plain = moved(KINDS[kind](Rate((0.05,), scale=0.1)), some(0), gradients())
    double = {n: 2 * v for n, v in some(0).items()}
    half = [{n: g / 2 for n, g in gradient.items()} for gradient in gradients()]
    scaled = moved(KINDS[kind](Rate((0.05,), scale=0.2), 0.05), double, half)
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], 2 * value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_changes_the_rate_of_one_name_and_0_freezes_it(kind: str) -> None:
    plain = moved(KINDS[kind](Rate((0.05,))), some(0), gradients())
    half = moved(KINDS[kind](Rate((0.05,), lr_multipliers={"gate": 0.5})), some(0), gradients())
    slow = moved(KINDS[kind](Rate((0.025,))), some(0), gradients())
    still = moved(KINDS[kind](Rate((0.05,), lr_multipliers={"gate": 0.0})), some(0), gradients())
    assert torch.equal(half["gate"], slow["gate"])
    assert torch.equal(half["prompt"], plain["prompt"])
    assert torch.equal(still["gate"], some(0)["gate"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules_by_hand(schedule: str, expected: list[float]) -> None:
    rate = Rate((1.0,), schedule=schedule, steps=6, warmup=2)  # type: ignore[arg-type]
    assert [round(rate.multiplier(s), 6) for s in range(6)] == expected


def test_a_schedule_moves_by_the_rate_of_its_step() -> None:
    rate = Rate((1.0,), schedule="linear", steps=4, warmup=1)
    ones = {"prompt": torch.ones(2, 1, 1)}
    made, params, seen = Sgd(rate), {"prompt": torch.zeros(2, 1, 1)}, []
    for step in range(4):
        after, _ = made.update(ones, {}, params, step)
        seen.append(float((params["prompt"] - after["prompt"])[0]))
        params = after
    assert seen == pytest.approx([rate.multiplier(s) for s in range(4)])
    assert rate.multiplier(3) > 0


def test_clipping_scales_every_copy_by_its_own_norm_over_all_names() -> None:
    gradient = some(3)
    gradient = {
        n: v * torch.tensor([0.01, 1.0, 100.0], dtype=v.dtype).view(-1, *[1] * (v.dim() - 1))
        for n, v in gradient.items()
    }
    limited, norm = clipped(gradient, 1.0)
    for copy in range(COPIES):
        leaves = [torch.zeros_like(v[copy]).requires_grad_() for v in gradient.values()]
        for leaf, value in zip(leaves, gradient.values(), strict=True):
            leaf.grad = value[copy].clone()
        expected_norm = torch.nn.utils.clip_grad_norm_(leaves, 1.0)
        assert float(norm[copy]) == pytest.approx(float(expected_norm))
        for leaf, value in zip(leaves, limited.values(), strict=True):
            torch.testing.assert_close(value[copy], leaf.grad, rtol=1e-5, atol=1e-9)
    same, _ = clipped(gradient, None)
    assert all(torch.equal(same[n], g) for n, g in gradient.items())


def test_a_zero_gradient_moves_nothing() -> None:
    zero = [{n: torch.zeros_like(v, dtype=torch.float32) for n, v in some(0).items()}] * 3
    start = {n: v.float() for n, v in some(0).items()}
    for made in (AdamW(Rate((1.0,))), Adafactor(Rate((1.0,)), weight_decay=0.0), Sgd(Rate((1.0,)))):
        assert all(torch.equal(v, start[n]) for n, v in moved(made, start, zero).items())
    limited, norm = clipped(zero[0], 1.0)
    assert float(norm.max()) == 0
    assert all(bool((g == 0).all()) for g in limited.values())


def test_optimisers_by_name() -> None:
    rate = Rate((0.1,))
    assert optimiser("adamw", rate, 0.2) == AdamW(rate, weight_decay=0.2)
    assert optimiser("adafactor", rate, 0.2) == Adafactor(rate, weight_decay=0.2)
    assert optimiser("sgd", rate, 0.0) == Sgd(rate)
    with pytest.raises(SpecError, match=r"weight decay \(--weight-decay\) has no effect with sgd"):
        optimiser("sgd", rate, 0.1)
    assert replace(rate, base=(0.2,)).at(0, "prompt", torch.zeros(3, 2)).shape == (3, 1)

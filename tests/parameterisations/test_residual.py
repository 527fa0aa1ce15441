"""Residual prompts against torch's own layers, and what folding keeps."""

import pytest
import torch
from torch import nn

from promptprior.notation import Params
from promptprior.objectives.objective import PromptObjective, loss_and_gradient
from promptprior.parameterisations.residual import Residual
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import tiny

C, L, D, R = 2, 3, 6, 4


def params(networks: int, width: int = D) -> Params:
    g = torch.Generator().manual_seed(1)
    shapes = {"prompt": (C, L, width), "down": (C, networks, width, R), "down_bias": (C, networks, R)}
    shapes |= {"up": (C, networks, R, width)} | dict.fromkeys(("up_bias", "gain", "shift"), (C, networks, width))
    return {name: torch.randn(*shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}


def layers(values: Params, copy: int, network: int) -> nn.Sequential:
    """The network as torch builds it."""
    made = nn.Sequential(nn.Linear(D, R), nn.ReLU(), nn.Linear(R, D), nn.LayerNorm(D)).double()
    weights = [
        values["down"].mT,
        values["down_bias"],
        values["up"].mT,
        values["up_bias"],
        values["gain"],
        values["shift"],
    ]
    for parameter, value in zip(made.parameters(), weights, strict=True):
        parameter.data = value[copy, network].clone()
    return made


@pytest.mark.parametrize("networks", [1, L])
@pytest.mark.parametrize("unit", [1.0, 0.1])
def test_it_is_the_prompt_plus_torchs_layers(networks: int, unit: float) -> None:
    values = params(networks)
    batch = collate([Tokens((2,), ((3,),))] * 3, copies=[0, 1, 1])
    prompts, index = Residual(L, D, unit).prompts(values, batch)
    assert index.tolist() == [0, 1, 1]
    for copy in range(C):
        for token in range(L):
            p = values["prompt"][copy, token]
            expected = p + layers(values, copy, token % networks)(p / unit)
            torch.testing.assert_close(prompts[copy, token], expected)


@pytest.mark.parametrize("networks", [1, L])
def test_a_gain_of_zero_starts_at_the_prompt_and_still_learns(networks: int) -> None:
    backbone = tiny("llama")
    width, form = backbone.width, Residual(L, backbone.width, backbone.scale)
    start = form.init(R, networks, 0.0, torch.Generator().manual_seed(0))
    values = {name: value.double()[None] for name, value in start.items()}
    values["prompt"] = params(1, width)["prompt"][:1] * backbone.scale
    batch = collate([Tokens((5, 6), ((7,),)), Tokens((8,), ((9,),))])
    assert torch.equal(form.prompts(values, batch)[0], values["prompt"])
    _, gradient = loss_and_gradient(PromptObjective(backbone, form), values, batch)
    assert gradient["gain"].abs().max() > 0
    assert gradient["prompt"].abs().max() > 0
    assert not gradient["down"].any()  # it moves as soon as the gain has


def test_the_released_gain_does_not_start_at_a_small_prompt() -> None:
    values = {
        n: v.double()[None] for n, v in Residual(L, 400).init(8, 1, 1.0, torch.Generator().manual_seed(0)).items()
    }
    values["prompt"] = 0.1 * torch.randn(1, L, 400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = Residual(L, 400).fold(values)["prompt"] - values["prompt"]
    assert moved.square().mean().sqrt() == pytest.approx(1, rel=0.01)  # ten times the prompt's own entries


def test_folding_keeps_the_prompt() -> None:
    values, form = params(1), Residual(L, D)
    assert form.fold(values).keys() == {"prompt"}
    assert torch.equal(form.fold(values)["prompt"], form.prompts(values, collate([Tokens((2,), ((3,),))]))[0])

"""The linear head against scikit-learn, finite differences, and fits that really leave a shot out."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from promptprior.backbone import Site
from promptprior.heads.head import Readout
from promptprior.heads.linear import SCALES, Linear, leave_one_out_scores, ridge_solution
from promptprior.notation import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shots(n: int, choices: int, sites: int, width: int, signal: float = 1.0) -> tuple[Readout, Tensor]:
    """Shots whose labels the states of the last site tell best, on ragged scales and away from zero."""
    labels = torch.arange(n) % choices
    strength = torch.linspace(0, signal, sites, dtype=torch.float64)[:, None]
    states = noise(n, sites, width) + strength * noise(choices, width, seed=1)[labels][:, None]
    states = states * noise(width, seed=2).exp() + 3 * noise(width, seed=3)
    return Readout(noise(n, choices, seed=4).square(), states), labels


@pytest.mark.parametrize(("n", "width"), [(12, 40), (40, 12)])
@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_the_solution_is_scikit_learns(n: int, width: int, strength: float) -> None:
    states, targets = noise(n, width) + 2, noise(n, 3, seed=1)
    weight, bias = ridge_solution(states, targets, strength)
    expected = Ridge(alpha=strength, tol=1e-12).fit(states.numpy(), targets.numpy())
    np.testing.assert_allclose(weight.t(), expected.coef_, atol=1e-6)
    np.testing.assert_allclose(bias, expected.intercept_, atol=1e-6)


def test_the_solution_is_differentiable_in_all_and_batched() -> None:
    states, targets = noise(2, 5, 7).requires_grad_(), noise(2, 5, 3, seed=1).requires_grad_()
    strength = torch.full((2, 1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ridge_solution, (states, targets, strength))  # against finite differences
    assert torch.autograd.gradgradcheck(lambda x: ridge_solution(x, targets.detach(), 0.3), states)
    weight, bias = ridge_solution(states, targets, strength)
    for b in range(2):
        alone = ridge_solution(states[b], targets[b], 0.3)
        torch.testing.assert_close((weight[b], bias[b]), alone)


@pytest.mark.parametrize(("n", "width"), [(10, 30), (30, 8)])
def test_leaving_one_out_is_fitting_without_it(n: int, width: int) -> None:
    states, targets, strengths = noise(n, width) + 1, noise(n, 3, seed=1), (0.01, 1.0)
    found = leave_one_out_scores(states, targets, strengths)
    for s, strength in enumerate(strengths):
        for i in range(n):
            kept = torch.arange(n) != i
            weight, bias = ridge_solution(states[kept], targets[kept], strength)
            torch.testing.assert_close(found[s, i], states[i] @ weight + bias, rtol=1e-8, atol=1e-8)


def test_the_head_is_scikit_learns_pipeline_at_the_site_and_strength_it_chooses() -> None:
    shown, labels = shots(24, 3, 4, 10)
    assert shown.states is not None
    head = Linear()
    params, held_out = head.fit_held_out(shown, labels)

    # The slow search: every candidate, every shot left out in turn
    spread = (shown.states - shown.states.mean(0)) / shown.states.std(0, correction=0)
    targets = 2.0 * torch.nn.functional.one_hot(labels, 3).double() - 1
    best = (-torch.inf,)
    for sites in [(0,), (1,), (2,), (3,), (0, 1, 2, 3)]:
        x = spread[:, list(sites)].flatten(1)
        for strength in head.strengths:
            alpha, scores = strength * x.shape[1], []
            for i in range(24):
                kept = np.arange(24) != i
                scores.append(Ridge(alpha=alpha, tol=1e-12).fit(x[kept], targets[kept]).predict(x[i : i + 1])[0])
            for scale in SCALES.tolist():
                logs = torch.log_softmax(scale * torch.tensor(np.array(scores)), dim=1)
                likelihood = float(logs.gather(1, labels[:, None]).mean())
                if likelihood > best[0]:
                    best = (likelihood, sites, alpha, scale, logs)
    _, sites, alpha, scale, logs = best
    assert head.used(params) == sites
    torch.testing.assert_close(held_out, -logs, rtol=0, atol=1e-6)

    others = noise(5, len(sites), 10, seed=9)
    pipeline = make_pipeline(StandardScaler(), Ridge(alpha=alpha, tol=1e-12))
    scores = pipeline.fit(shown.states[:, list(sites)].flatten(1), targets).predict(others.flatten(1))
    expected = -torch.log_softmax(scale * torch.tensor(scores), dim=1)
    found = head.choice_nll(params, Readout(torch.zeros(5, 3, dtype=torch.float64), others))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_it_finds_the_site_that_knows() -> None:
    shown, labels = shots(40, 2, 3, 12, signal=2.0)
    assert shown.states is not None
    useless = noise(40, 2, 12, seed=8)
    only_last = Readout(shown.nll, torch.cat([useless, shown.states[:, -1:]], dim=1))
    head = Linear()
    params = head.fit(only_last, labels, None)
    assert head.used(params) == (2,)
    nll = head.choice_nll(params, Readout(shown.nll, shown.states[:, -1:]))
    assert (nll.argmin(1) == labels).float().mean() > 0.9
    torch.testing.assert_close((-nll).exp().sum(1), torch.ones(40, dtype=torch.float64))


def test_one_shot_of_a_label_takes_the_middle_and_constant_states_do_no_harm() -> None:
    shown, labels = shots(4, 4, 6, 10)
    assert shown.states is not None
    shown.states[:, :, 0] = 5.0
    head = Linear(layers=(1, 3, 5))
    params, held_out = head.fit_held_out(shown, labels)
    assert held_out is None
    assert head.sites(6)[head.used(params)[0]] == Site(3, "mean")
    nll = head.choice_nll(params, Readout(shown.nll, shown.states[:, list(head.used(params))]))
    assert (nll.argmin(1) == labels).all()


@pytest.mark.parametrize("layers", [1, 2, 6, 30, 80])
def test_the_default_layers_are_few_and_exist(layers: int) -> None:
    chosen = [site.layer for site in Linear().sites(layers)]
    assert chosen == sorted(chosen)
    assert 1 <= chosen[0] <= chosen[-1] == layers
    assert len(set(chosen)) == min(layers, 9)
    if layers == 30:
        assert 15 in chosen

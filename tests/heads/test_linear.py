"""The linear head against scikit-learn, finite differences, and fits that really leave a shot out."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from promptprior.backbone import Site
from promptprior.heads.head import Readout
from promptprior.heads.linear import (
    BOOTSTRAPS,
    LEAST_SHARE,
    SCALES,
    Linear,
    leave_one_out_scores,
    ridge_solution,
    site_shares,
)
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


def test_the_head_is_scikit_learns_pipelines_at_the_settings_it_chooses() -> None:
    shown, labels = shots(24, 3, 4, 10)
    assert shown.states is not None
    head = Linear()
    params, held_out = head.fit_held_out(shown, labels)

    # The slow search: every site, strength and scale, every shot left out in turn
    spread = (shown.states - shown.states.mean(0)) / shown.states.std(0, correction=0)
    targets = 2.0 * torch.nn.functional.one_hot(labels, 3).double() - 1
    best = [(-torch.inf, 0.0, 0.0, torch.empty(0))] * 4
    for s in range(4):
        for strength in head.strengths:
            alpha, scores = strength * 10, []
            for i in range(24):
                kept, x = np.arange(24) != i, spread[:, s]
                scores.append(Ridge(alpha=alpha, tol=1e-12).fit(x[kept], targets[kept]).predict(x[i : i + 1])[0])
            for scale in SCALES.tolist():
                logs = torch.log_softmax(scale * torch.tensor(np.array(scores)), dim=1)
                likelihood = float(logs.gather(1, labels[:, None]).mean())
                if likelihood > best[s][0]:
                    best[s] = (likelihood, alpha, scale, logs)
    table = torch.stack([logs for *_, logs in best])  # [S, n, K]
    shares = site_shares(table[:, torch.arange(24), labels])
    used = [s for s in range(4) if shares[s] >= LEAST_SHARE]
    shares = shares[used] / shares[used].sum()
    assert head.used(params) == tuple(used)
    torch.testing.assert_close(params["share"], shares, rtol=0, atol=1e-6)
    expected = -(shares[:, None, None] * table[used].exp()).sum(0).log()
    torch.testing.assert_close(held_out, expected, rtol=0, atol=1e-6)

    others, mean = noise(5, 4, 10, seed=9), torch.zeros(5, 3, dtype=torch.float64)
    for share, s in zip(shares, used, strict=True):
        _, alpha, scale, _ = best[s]
        pipeline = make_pipeline(StandardScaler(), Ridge(alpha=alpha, tol=1e-12)).fit(shown.states[:, s], targets)
        mean += share * torch.softmax(scale * torch.tensor(pipeline.predict(others[:, s])), dim=1)
    found = head.choice_nll(params, Readout(mean, others[:, used]))
    torch.testing.assert_close(found, -mean.log(), rtol=0, atol=1e-6)


def test_shares_are_those_of_a_loop_and_follow_the_evidence() -> None:
    likelihood = noise(3, 12).abs().neg()
    generator = torch.Generator().manual_seed(0)
    drawn = -torch.rand(BOOTSTRAPS, 12, generator=generator, dtype=torch.float64).log()
    slow = torch.zeros(3, dtype=torch.float64)
    for row in drawn:
        total = 12 * (likelihood * row / row.sum()).sum(1)
        slow += total.exp() / total.exp().sum() / BOOTSTRAPS
    torch.testing.assert_close(site_shares(likelihood), slow)
    torch.testing.assert_close(site_shares(likelihood[:1].repeat(3, 1)), torch.full((3,), 1 / 3, dtype=torch.float64))
    few, many = (site_shares(torch.tensor([[-0.5], [-0.7]], dtype=torch.float64).repeat(1, n)) for n in (2, 60))
    assert 0.5 < few[0] < 0.65
    assert many[0] > 0.99


def test_it_reads_the_site_that_knows() -> None:
    shown, labels = shots(40, 2, 3, 12, signal=2.0)
    assert shown.states is not None
    useless = noise(40, 2, 12, seed=8)
    only_last = Readout(shown.nll, torch.cat([useless, shown.states[:, -1:]], dim=1))
    head = Linear()
    params = head.fit(only_last, labels, None)
    assert head.used(params) == (2,)
    nll = head.choice_nll(params, Readout(shown.nll, shown.states[:, -1:]))
    assert (nll.argmin(1) == labels).float().mean() > 0.9


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

"""Starts and priors that particles give a target, against closed forms and torch.distributions."""

import math

import pytest
import torch

from promptprior.errors import SpecError
from promptprior.methods.shared.particles import geometry, penalty, start, weights
from promptprior.notation import Tensor

M, L, D = 4, 2, 3


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_starts() -> None:
    particles, losses = made(M, L, D), torch.tensor([1.0, 0.5, 2.0, 1.5])
    torch.testing.assert_close(start(particles, "mean", losses), particles.mean(0))
    assert torch.equal(start(particles, "best", losses), particles[1])
    torch.testing.assert_close(start(particles, "weighted", losses, count=1e4), particles[1])
    torch.testing.assert_close(start(particles, "weighted", losses, count=0.0), particles.mean(0))
    drawn = [start(particles, "sampled", losses, generator=torch.Generator().manual_seed(s)) for s in range(40)]
    assert {int((particles == d).all(-1).all(-1).nonzero()) for d in drawn} == set(range(M))


def test_weights_are_likelihood_ratios() -> None:
    made = weights(torch.tensor([1.0, 2.0]), 3.0)
    assert float(made[0] / made[1]) == pytest.approx(math.exp(3))


def test_unknown_names_are_named() -> None:
    with pytest.raises(SpecError, match=r"unknown start 'means'; did you mean 'mean'.*--start"):
        start(made(M, L, D), "means", torch.zeros(M))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"unknown penalty 'gauss'.*'gaussian'.*--penalty"):
        penalty("gauss", made(1, M, L, D), [0], [1.0], [4], 1.0)  # type: ignore[arg-type]
    assert penalty("none", made(1, M, L, D), [0], [1.0], [4], 1.0) is None


def test_the_mixture_is_torchs_over_the_number_of_examples() -> None:
    particles, x = made(2, M, L, D), made(3, L, D, seed=1)
    which, widths, examples, scale = [0, 1, 1], [2.0, 3.0, 0.5], [4, 16, 7], 0.4
    term = penalty("mixture", particles, which, widths, examples, scale)
    assert term is not None
    value = term({"prompt": x})
    for c in range(3):
        width = widths[c] * scale
        parts = torch.distributions.Normal(particles[which[c]].flatten(1), width).log_prob(x[c].flatten()).sum(1)
        constant = L * D * math.log(width * math.sqrt(2 * math.pi))
        expected = -(torch.logsumexp(parts, 0) - math.log(M) + constant) / examples[c]
        torch.testing.assert_close(value[c], expected)


def test_the_gaussian_form_is_jensens_bound_on_the_mixture() -> None:
    particles, x = made(1, M, L, D), made(1, L, D, seed=1)
    term = penalty("gaussian", particles, [0], [2.0], [4], 0.4)
    mixture = penalty("mixture", particles, [0], [2.0], [4], 0.4)
    assert term is not None
    assert mixture is not None
    by_hand = (x - particles[0].mean(0)).square().sum() / (2 * 0.8**2 * 4)
    torch.testing.assert_close(term({"prompt": x}), by_hand[None])
    mean_of_squares = (x - particles[0]).square().sum((1, 2)).mean() / (2 * 0.8**2 * 4)
    assert float(mixture({"prompt": x})[0]) <= float(mean_of_squares)


def test_both_forms_agree_for_one_particle_and_weaken_with_examples() -> None:
    particle, x = made(1, 1, L, D), made(2, L, D, seed=1)[:1].repeat(2, 1, 1)
    forms = [penalty(kind, particle, [0, 0], [2.0, 2.0], [4, 32], 1.0) for kind in ("gaussian", "mixture")]  # type: ignore[arg-type]
    values = [form({"prompt": x}) for form in forms if form is not None]
    torch.testing.assert_close(values[0], values[1])
    assert float(values[0][0] / values[0][1]) == pytest.approx(8)


def test_a_far_mixture_still_has_a_gradient() -> None:
    term = penalty("mixture", made(1, M, L, D).float(), [0], [0.01], [1], 1.0)
    assert term is not None
    x = (100 + made(1, L, D)).float().requires_grad_()
    term({"prompt": x}).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().min()) > 0


def test_geometry_of_known_particles() -> None:
    particles = torch.zeros(3, 1, 2)
    particles[1, 0, 0], particles[2, 0, 0] = 2.0, 4.0  # on a line
    found = geometry(particles, scale=2.0)
    assert found["distances"] == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    assert found["directions"] == pytest.approx(1)
    assert found["spread"] == pytest.approx(math.sqrt(8 / 6) / 2)
    assert found["kernel"][0][1] == pytest.approx(1 / 4)  # type: ignore[index]  exp(-log(M + 1)) at the median


def test_geometry_of_one_particle() -> None:
    found = geometry(torch.ones(1, 2, 2), scale=0.5)
    assert (found["spread"], found["directions"], found["size"]) == (0, 0, 2)

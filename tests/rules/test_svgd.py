"""Stein variational gradient descent against autograd, against pyro, and on densities whose answer is known."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from promptprior.errors import SpecError
from promptprior.notation import Params, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.rules.descent import Descent
from promptprior.rules.optimiser import Adafactor, AdamW, Optimiser, Rate, Sgd
from promptprior.rules.rule import State
from promptprior.rules.stein_kernels import (
    Independent,
    Kernel,
    PerToken,
    Projected,
    Rbf,
    block_forces,
    flat,
    make_kernel,
    off_diagonal,
    squared_distances,
)
from promptprior.rules.svgd import Repulsion, Svgd
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from tests.backbone.tiny import tiny

KERNELS = [Rbf(), PerToken(), PerToken(block=2), Projected(3), Projected(subspace="gradient"), Independent()]
STEIN = KERNELS[:-1]


@dataclass(frozen=True)
class Density:
    """An objective whose loss is minus a log-density of the parameter "x"."""

    log_density: Callable[[Tensor], Tensor]

    def losses(self, params: Params, batch: Batch) -> Tensor:
        return -self.log_density(params["x"])[batch.row_copy]

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> Iterable[Batch]:
        return [batch]


def one_row(tasks: int = 1) -> Batch:
    return collate([Tokens((2,), ((3,),))] * tasks, tasks=list(range(tasks)))


def particles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(rule: Svgd, x: Tensor, log_density: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    state = rule.init({"x": x})
    for _ in range(steps):
        state, _ = rule.step(state, one_row(), Density(log_density))
    return state.params["x"]


# The Stein direction


def blocks_of(kernel: Kernel, params: Params, gradient: Params) -> list[tuple[Tensor, bool]]:
    """The orthogonal projectors whose blocks a kernel treats apart, over the joint vector."""
    n = flat(params).shape[1]
    eye = torch.eye(n, dtype=torch.float64)
    if isinstance(kernel, Projected):
        basis = kernel.basis(flat(gradient))
        return [(basis @ basis.T, True), (eye - basis @ basis.T, False)]
    if isinstance(kernel, PerToken):
        width = kernel.block or params["a"].shape[2]
        tokens, places = params["a"].shape[1:]
        chunks = [
            t * places + torch.arange(s, min(s + width, places)) for t in range(tokens) for s in range(0, places, width)
        ]
        rest = torch.arange(tokens * places, n)
        chunks += list(rest.split(kernel.block or len(rest)))
        return [(torch.diag(eye[c].sum(0)), True) for c in chunks]
    return [(eye, True)]


def stein_by_autograd(kernel: Kernel, params: Params, gradient: Params) -> tuple[Tensor, Tensor]:
    """Both forces from the definition: the matrix-valued kernel and its divergence by automatic differentiation."""
    x, g = flat(params), flat(gradient)
    m = len(x)
    attraction, repulsion = torch.zeros_like(x), torch.zeros_like(x)
    for projector, own in blocks_of(kernel, params, gradient):
        seen = projector if own else torch.eye(x.shape[1], dtype=x.dtype)  # outside its subspace: plain RBF
        pairs = torch.stack([(seen @ (x[i] - x[j])).square().sum() for i in range(m) for j in range(i)])
        h = pairs.quantile(0.5) / math.log(m + 1)

        def k(a: Tensor, b: Tensor, seen: Tensor = seen, h: Tensor = h) -> Tensor:
            return torch.exp(-(seen @ (a - b)).square().sum() / h)

        for i in range(m):
            for j in range(m):
                attraction[i] += projector @ g[j] * k(x[j], x[i]) / m
                repulsion[i] += projector @ torch.func.grad(k)(x[j], x[i]) / m
    return attraction, repulsion


@pytest.mark.parametrize("kernel", STEIN, ids=str)
def test_both_forces_are_those_of_the_definition(kernel: Kernel) -> None:
    params = {"a": particles(5, 3, 5), "b": particles(5, 4, seed=1)}
    gradient = {"a": particles(5, 3, 5, seed=2), "b": particles(5, 4, seed=3)}
    made = kernel.stein(params, gradient)
    attraction, repulsion = stein_by_autograd(kernel, params, gradient)
    torch.testing.assert_close(flat(made.attraction), attraction, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flat(made.repulsion), repulsion, rtol=1e-9, atol=1e-9)


def test_the_direction_is_pyros() -> None:
    pyro = pytest.importorskip("pyro")
    from pyro.infer import SVGD
    from pyro.infer.svgd import SteinKernel

    class ScalarBandwidth(SteinKernel):  # pyro's own kernel has one bandwidth per dimension
        def log_kernel_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
            delta = x[None] - x[:, None]
            pairs = torch.pdist(x).square()
            h = pairs.quantile(0.5) / math.log(len(x) + 1)
            return -delta.square() / h, 2 * delta / h

    precision = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)

    def model() -> None:
        normal = pyro.distributions.Normal(torch.ones(3, dtype=torch.float64), precision.rsqrt())
        pyro.sample("x", normal.to_event(1))

    pyro.clear_param_store()
    sampler = SVGD(model, ScalarBandwidth(), pyro.optim.SGD({"lr": 1.0}), 6, max_plate_nesting=0, mode="multivariate")
    start = particles(6, 3)
    sampler.guide._setup_prototype()
    pyro.param("svgd_particles", start.flatten().clone())
    sampler.step()
    theirs = pyro.param("svgd_particles").detach().reshape(6, 3) - start
    pyro.clear_param_store()

    rule = Svgd(Sgd(Rate((1.0,))))
    ours = run(rule, start, lambda x: -((x - 1).square() * precision).sum(1) / 2, 1) - start
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_permuting_particles_permutes_forces(kernel: Kernel) -> None:
    params, gradient = {"a": particles(5, 3, 4)}, {"a": particles(5, 3, 4, seed=2)}
    order = torch.tensor([3, 0, 4, 1, 2])
    made = kernel.stein(params, gradient)
    moved = kernel.stein({"a": params["a"][order]}, {"a": gradient["a"][order]})
    torch.testing.assert_close(moved.attraction["a"], made.attraction["a"][order])
    torch.testing.assert_close(moved.repulsion["a"], made.repulsion["a"][order])


@pytest.mark.parametrize("kernel", STEIN, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_identical_particles_share_the_mean_gradient_and_do_not_repel(kernel: Kernel, dtype: torch.dtype) -> None:
    params = {"a": particles(1, 3, 4).expand(3, 3, 4).to(dtype) + 7}
    gradient = {"a": particles(3, 3, 4, seed=2).to(dtype)}
    made = kernel.stein(params, gradient)
    mean = gradient["a"].mean(0).expand(3, 3, 4)
    torch.testing.assert_close(made.attraction["a"], mean)
    assert made.repulsion["a"].abs().max() == 0
    assert float(made.similarity) == pytest.approx(1)


def test_repulsion_pushes_two_particles_apart_along_their_line() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    repulsion = Rbf().stein({"x": x}, {"x": torch.zeros_like(x)}).repulsion["x"]
    size = 5 * math.log(3) / 25 / 3  # (2/h) |x_1 - x_2| k / M with h = 25 / log 3 and k = 1/3
    torch.testing.assert_close(repulsion, size * torch.tensor([[-0.6, -0.8], [0.6, 0.8]], dtype=torch.float64))


def test_one_far_particle_does_not_make_the_bandwidth_vanish() -> None:
    x = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)[None, :, None]
    squared = squared_distances(x - x.mean(1, keepdim=True))
    pairs = off_diagonal(squared)
    *_, similarity, _ = block_forces(x, torch.zeros_like(x))
    kernel = torch.exp(-pairs / (pairs.mean() / math.log(6)))  # the median is 0, so the mean stands in
    assert float(similarity) == pytest.approx(float(kernel.mean()))


def test_float32_keeps_six_digits_at_the_size_of_a_prompt() -> None:
    x, g = {"a": 5 + 0.1 * particles(5, 20, 64)}, {"a": particles(5, 20, 64, seed=1)}
    wide = Rbf().stein(x, g)
    narrow = Rbf().stein({"a": x["a"].float()}, {"a": g["a"].float()})
    assert narrow.attraction["a"].dtype == torch.float32
    torch.testing.assert_close(narrow.attraction["a"].double(), wide.attraction["a"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(narrow.repulsion["a"].double(), wide.repulsion["a"], rtol=1e-4, atol=1e-6)


def test_half_precision_is_worked_out_in_float32() -> None:
    x = (particles(4, 3, 8) * 0.05).to(torch.bfloat16)
    made = PerToken().stein({"a": x}, {"a": x})
    wide = PerToken().stein({"a": x.float()}, {"a": x.float()})
    torch.testing.assert_close(made.repulsion["a"], wide.repulsion["a"].to(torch.bfloat16))


def test_an_unknown_kernel_is_named() -> None:
    with pytest.raises(SpecError, match=r"unknown kernel 'pertoken'; did you mean 'per_token'.*--kernel"):
        make_kernel("pertoken")  # type: ignore[arg-type]


# The rule


def prompt_problem() -> tuple[PromptObjective, Batch]:
    backbone = tiny("gpt2", torch.float32)
    batch = collate([Tokens((5, 6, 7), ((8, 9),)), Tokens((10, 11), ((12,),)), Tokens((4,), ((9,),))], tasks=[0, 1, 1])
    return PromptObjective(backbone, Direct(3, backbone.width)), batch


def steps_of(rule: Any, params: Params, objective: Any, batch: Batch, steps: int) -> State:
    state = rule.init(params)
    for _ in range(steps):
        state, _ = rule.step(state, batch, objective)
    return state


def pulled(params: Params) -> Tensor:
    return params["prompt"].flatten(1).square().sum(1)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize(
    "optimiser", [AdamW(Rate((0.3,))), Adafactor(Rate((0.3,))), Sgd(Rate((0.3,)), 0.9)], ids=lambda o: type(o).__name__
)
def test_one_particle_is_descent_bit_for_bit(kernel: Kernel, optimiser: Optimiser) -> None:
    objective, batch = prompt_problem()
    params = {"prompt": particles(1, 3, 32).float() * 0.1}
    plain = steps_of(Descent(optimiser, 0.5, pulled), params, objective, batch, 4)
    stein = steps_of(Svgd(optimiser, kernel, clip=0.5, penalty=pulled), params, objective, batch, 4)
    assert torch.equal(plain.params["prompt"], stein.params["prompt"])
    assert not torch.equal(plain.params["prompt"], params["prompt"])


def test_independent_particles_are_copies_of_descent_bit_for_bit() -> None:
    objective, batch = prompt_problem()
    params = {"prompt": particles(3, 3, 32).float() * 0.1}
    plain = steps_of(Descent(AdamW(Rate((0.3,)))), params, objective, batch.tile(3), 4)
    stein = steps_of(Svgd(AdamW(Rate((0.3,))), Independent()), params, objective, batch, 4)
    assert torch.equal(plain.params["prompt"], stein.params["prompt"])


def test_all_particles_are_read_in_one_engine_call() -> None:
    calls = []

    @dataclass(frozen=True)
    class Counting(Density):
        def losses(self, params: Params, batch: Batch) -> Tensor:
            calls.append(batch.rows)
            return super().losses(params, batch)

    rule = Svgd(Sgd(Rate((0.1,))))
    rule.step(rule.init({"x": particles(4, 2)}), one_row(3), Counting(lambda x: -x.square().sum(1)))
    assert calls == [12]


def test_the_count_tempers_repulsion_and_annealing_moves_it() -> None:
    x = particles(4, 2)

    def pushed(**options: Any) -> Tensor:
        rule = Svgd(Sgd(Rate((1.0,))), **options)
        return run(rule, x, lambda x: 0 * x.sum(1), 1) - x

    plain = pushed()
    torch.testing.assert_close(pushed(count=10.0), plain / 10)
    torch.testing.assert_close(pushed(repulsion=Repulsion(2.0)), plain * 2)
    torch.testing.assert_close(pushed(repulsion=Repulsion(last=1.0, first=5.0, steps=10)), plain * 5)


def test_task_weights_reweigh_rows_of_tasks() -> None:
    objective, batch = prompt_problem()
    params = {"prompt": particles(2, 3, 32).float() * 0.1}
    weights = (0.0, 1.5)  # wanted 0 : 1, drawn 1/3 : 2/3
    only_second = batch.take(torch.tensor([1, 2]))
    rule = Svgd(Sgd(Rate((0.3,))))
    weighted = steps_of(replace(rule, task_weights=weights), params, objective, batch, 2)
    alone = steps_of(rule, params, objective, only_second, 2)
    torch.testing.assert_close(weighted.params, alone.params)


def test_what_a_step_reports() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    rule = Svgd(Sgd(Rate((1.0,))), scale=0.5)
    _, info = rule.step(rule.init({"x": x}), one_row(), Density(lambda x: -x.square().sum(1) / 2))
    assert float(info["kernel"]) == pytest.approx(1 / 3)
    assert float(info["distance"]) == pytest.approx(5 / 0.5)
    assert float(info["spread"]) == pytest.approx(math.sqrt(25 / 8) / 0.5)
    push = math.sqrt(2) * 5 * math.log(3) / 75  # as above; the gradients are the particles: 0 and (3, 4)
    pull = math.hypot(5 / 3 / 2, 5 / 2)
    assert float(info["repulsion_ratio"]) == pytest.approx(push / pull)


# Densities whose answer is known


def test_a_gaussian_mixture_in_two_dimensions_is_recovered() -> None:
    m, means = 60, torch.tensor([[-1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    deviation = torch.tensor([[0.6, 0.8], [0.8, 0.5]], dtype=torch.float64)
    share = torch.tensor([0.4, 0.6], dtype=torch.float64)

    def log_density(x: Tensor) -> Tensor:
        z = (x[:, None] - means) / deviation
        return torch.logsumexp(share.log() - deviation.log().sum(1) - z.square().sum(2) / 2, 1)

    schedule = Rate((0.1,), schedule="linear", steps=300)
    x = run(Svgd(AdamW(schedule)), particles(m, 2) * 0.5, log_density, 300)
    mean = share @ means
    covariance = (means.T * share) @ means - torch.outer(mean, mean) + torch.diag(share @ deviation.square())
    error = 3 * math.sqrt(float(covariance.diagonal().max()) / m)  # three standard errors of m exact draws
    assert (x.mean(0) - mean).abs().max() < error
    assert (torch.cov(x.T) - covariance).abs().max() < 3 * float(covariance.diagonal().max()) * math.sqrt(2 / m)


TOKENS, WIDTH, M = 100, 20, 20


def stationary(kernel: Kernel) -> Tensor:
    """Particles of a unit Gaussian in 2,000 dimensions after SVGD has come to rest."""
    start = particles(M, TOKENS, WIDTH).float()
    return run(Svgd(Sgd(Rate((8.0,))), kernel), start, lambda x: -x.flatten(1).square().sum(1) / 2, 40)


def test_high_dimensions_collapse_as_the_formula_says_and_small_blocks_do_not() -> None:
    plain = float(stationary(Rbf()).var(0).mean())
    per_token = float(stationary(PerToken()).var(0).mean())
    smaller = float(stationary(PerToken(block=5)).var(0).mean())
    assert plain == pytest.approx(math.log(M + 1) / (TOKENS * WIDTH), rel=0.05)
    assert per_token == pytest.approx(math.log(M + 1) / WIDTH, rel=0.15)
    assert per_token > 10 * plain
    assert per_token < smaller < 1


def test_a_projected_kernel_keeps_the_variance_of_its_subspace_alone() -> None:
    kernel = Projected(dimensions=WIDTH)
    x = stationary(kernel).flatten(1)
    basis = kernel.basis(x)
    inside, rest = x @ basis, x - x @ basis @ basis.T
    assert float(inside.var(0).mean()) == pytest.approx(math.log(M + 1) / WIDTH, rel=0.15)
    assert float(rest.var(0).mean()) < float(inside.var(0).mean()) / 10


def test_stronger_repulsion_restores_a_unit_gaussian() -> None:
    start = particles(M, 500).float()
    needed = Repulsion(500 / math.log(M + 1))
    x = run(Svgd(Sgd(Rate((8.0,))), repulsion=needed), start, lambda x: -x.square().sum(1) / 2, 40)
    assert float(x.var(0).mean()) == pytest.approx(1.0, rel=0.1)

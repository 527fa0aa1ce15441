"""One SVGD step on a Gaussian, ours against pyro's, alternating in one run; then the kernel's share of a training step.

    pip install pyro-ppl
    python benchmarks/svgd.py                 # about 2 minutes on one core, 3 GB
    python benchmarks/svgd.py --trials 11 --json results.json

`step` is all of it: log-density and gradient, kernel, a plain gradient step. `kernel` is the Stein direction from given
particles and gradients. Pyro's own kernel has a bandwidth for every dimension; it is given our scalar one, at the same
cost, so that both compute the same direction.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from measure import Step, alternate, finish, options
from pyro.infer import SVGD
from pyro.infer.svgd import RBFSteinKernel

from promptprior.notation import Params, Tensor
from promptprior.rules.optimiser import Rate, Sgd
from promptprior.rules.stein_kernels import Rbf, make_kernel
from promptprior.rules.svgd import Svgd
from promptprior.tasks.sampling.batch import Batch, Tokens, collate

CASES = [(n, d) for n in (5, 16) for d in (57_600, 409_600)]
ROW = collate([Tokens((2,), ((3,),))])


class ScalarBandwidth(RBFSteinKernel):
    """Pyro's kernel with the one bandwidth of Liu & Wang 2016."""

    def _bandwidth(self, norm_sq: Tensor) -> Tensor:
        i, j = torch.triu_indices(len(norm_sq), len(norm_sq), offset=1)
        pairs = norm_sq.sum(2)[i, j]
        return (pairs.quantile(0.5) / math.log(len(norm_sq) + 1)).expand(norm_sq.shape[2])


@dataclass(frozen=True)
class Gaussian:
    """Minus the log-density of a unit Gaussian around 1, up to a constant."""

    def losses(self, params: Params, batch: Batch) -> Tensor:
        return (params["x"] - 1).square().sum(1)[batch.row_copy] / 2

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> list[Batch]:  # noqa: ARG002
        return [batch]


def pyros(start: Tensor) -> tuple[Step, Callable[[], Tensor]]:
    """A whole step of pyro's, from the same start each time, and where it leads."""
    pyro.clear_param_store()
    width = start.shape[1]

    def model() -> None:
        pyro.sample("x", pyro.distributions.Normal(torch.ones(width), 1.0).to_event(1))

    sampler = SVGD(model, ScalarBandwidth(), pyro.optim.SGD({"lr": 1.0}), len(start), 0, mode="multivariate")
    sampler.guide._setup_prototype()
    pyro.param("svgd_particles", start.flatten().clone())

    def moved() -> Tensor:
        with torch.no_grad():
            pyro.param("svgd_particles").copy_(start.flatten())
        sampler.step()
        return pyro.param("svgd_particles").detach().reshape(start.shape) - start

    return moved, moved


def pyros_kernel(x: Tensor, gradient: Tensor) -> Step:
    """What `SVGD.step` does between gradient and optimiser."""
    kernel = ScalarBandwidth()

    def step() -> Tensor:
        logarithm, away = kernel.log_kernel_and_grad(x)
        value = logarithm.sum(-1).exp()
        return (value @ gradient + torch.einsum("nm,nm...->n...", value, away)) / len(x)

    return step


def ours(start: Tensor) -> Callable[[], Tensor]:
    """A whole step of ours."""
    rule = Svgd(Sgd(Rate((1.0,))))
    state = rule.init({"x": start})
    return lambda: rule.step(state, ROW, Gaussian())[0].params["x"] - start


def compared(particles: int, width: int, trials: int) -> list[dict[str, Any]]:
    """Both rows of one case."""
    start = torch.randn(particles, width, generator=torch.Generator().manual_seed(0))
    gradient = start - 1
    mine, (theirs, moved) = ours(start), pyros(start)
    cosine = torch.cosine_similarity(mine().flatten().double(), moved().flatten().double(), dim=0)
    pairs = {
        "step": (mine, theirs),
        "kernel": (lambda: Rbf().stein({"x": start}, {"x": gradient}), pyros_kernel(start, gradient)),
    }
    rows = []
    for part, (a, b) in pairs.items():
        fast, slow = alternate([a, b], trials)
        rows.append(
            {
                "case": f"{part}/N{particles}/D{width}",
                "ours_s": fast.median,
                "pyro_s": slow.median,
                "speedup": slow.median / fast.median,
                "direction_cosine": float(cosine),
            }
        )
    return rows


def kernel_costs(trials: int) -> list[dict[str, Any]]:
    """Each kernel on 5 prompts of 100 tokens of width 576; pyro has none of them but the first."""
    x = {"prompt": torch.randn(5, 100, 576)}
    kinds = ("rbf", "per_token", "projected", "gradient")
    steps = [lambda kind=kind: make_kernel(kind).stein(x, x) for kind in kinds]
    times = alternate(steps, trials)
    none = dict.fromkeys(("pyro_s", "speedup", "direction_cosine"))
    return [{"case": f"{kind}/N5/D57600", "ours_s": t.median} | none for kind, t in zip(kinds, times, strict=True)]


def main() -> None:
    arguments = options(__doc__ or "").parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [row for case in CASES for row in compared(*case, arguments.trials)]
    finish([*rows, *kernel_costs(arguments.trials)], arguments.json)


if __name__ == "__main__":
    main()

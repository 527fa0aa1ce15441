"""A posterior over prompts that can be integrated on a grid, and what SVGD makes of it.

A prompt of L tokens is kept to a plane: token l is base_l + sum_i z_li d_li, with n fixed directions of a token's usual
norm. With a prior N(0, 1) on every z the posterior of N throws is

    p(z | throws) ~ exp(-N loss(z)) N(z; 0, 1)          loss: mean nats a throw, as the engine has it

and with L n <= 3 numbers a grid has its mean, its covariance, and the predictive E p(heads | text, z) to many digits.
The same log-density is given to the library's `Svgd` by its own train loop, with its kernels.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch

from promptprior.backbone import Backbone, ranking_tokens
from promptprior.notation import Float, Int, Params, Tensor
from promptprior.objectives.objective import PromptObjective, copy_losses, mean_weights
from promptprior.parameterisations.initial import vocabulary_start
from promptprior.rules.optimiser import AdamW, Rate
from promptprior.rules.stein_kernels import KernelKind, make_kernel
from promptprior.rules.svgd import Svgd
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.sampling.draws import generator
from promptprior.train import Run, train
from proving_ground.coin_world import CELLS, Bag

POINTS = {1: 161, 2: 33, 3: 15}  # of the grid, along each dimension
REACH = 4.0  # of the grid, in widths of the prior
AT_ONCE = 256  # grid points in a call of the engine


@dataclass(frozen=True, eq=False)
class Plane:
    """The parameterisation: params "z" Float[C, L, n]; the prompt of copy c is base + sum_i z_i directions_i."""

    base: Float[Tensor, "L D"]
    directions: Float[Tensor, "L n D"]
    name: str = "plane"

    @property
    def length(self) -> int:
        """L."""
        return len(self.base)

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "C L D"], Int[Tensor, " X"]]:
        """The prompt of every copy."""
        return self.base + torch.einsum("cln,lnd->cld", params["z"], self.directions), batch.copy_index


def random_plane(backbone: Backbone, tokens: int, dimensions: int, seed: int) -> Plane:
    """A plane through embeddings of words, along random directions of an embedding's norm, orthogonal in each token."""
    g = generator("plane", seed)
    frames = torch.linalg.qr(torch.randn(tokens, backbone.width, dimensions, generator=g))[0]
    directions = frames.transpose(1, 2) * backbone.scale * math.sqrt(backbone.width)
    return Plane(vocabulary_start(backbone, tokens, g).detach(), directions.to(backbone.frozen.prompt_dtype))


@dataclass(frozen=True, eq=False)
class PlanePosterior:
    """The posterior over z of throws (counts [hands, coins, sides])."""

    backbone: Backbone
    plane: Plane
    throws: Float[Tensor, "hands coins sides"]
    bag: Bag

    @property
    def objective(self) -> PromptObjective:
        """Losses of the plane's prompts."""
        return PromptObjective(self.backbone, self.plane)

    @property
    def count(self) -> float:
        """N."""
        return float(self.throws.sum())

    @cached_property
    def tokens(self) -> list[Tokens]:
        """Every text with both its answers."""
        return ranking_tokens(self.backbone, self.bag.task, self.bag.task.split("test"))

    @cached_property
    def data(self) -> Batch:
        """All texts, their answers weighted by how often they were thrown."""
        return replace(collate(self.tokens), weight=self.throws.flatten().float())

    def batch(self, step: int = -1) -> Batch:
        """All data, in every step."""
        return replace(self.data, step=step, seeds=(0,) if step >= 0 else ())

    @torch.no_grad()
    def describe(self, z: Float[Tensor, "C L n"]) -> tuple[Float[Tensor, " C"], Float[Tensor, "C hands coins"]]:
        """The log-density of every point, up to a constant, and P(heads) of every text there."""
        logs, heads = [], []
        for part in z.split(AT_ONCE):
            batch = self.batch().tile(len(part))
            nats = self.objective.losses({"z": part}, batch)  # [R]
            loss = copy_losses(nats, mean_weights(batch, len(part)), batch, len(part))
            logs.append(-self.count * loss.double() - part.double().square().flatten(1).sum(1) / 2)
            heads.append(torch.softmax(-nats.double().view(len(part), *CELLS, 2), -1)[..., 0])
        return torch.cat(logs), torch.cat(heads)

    def integrate(self) -> "Exact":
        """Everything that is asked, on the grid."""
        shape = tuple(self.plane.directions.shape[:2])
        dimensions = shape[0] * shape[1]
        line = torch.linspace(-REACH, REACH, POINTS[dimensions])
        z = torch.stack(torch.meshgrid(*[line] * dimensions, indexing="ij"), -1).view(-1, *shape)
        log_density, heads = self.describe(z)
        weight = torch.softmax(log_density, 0)
        mean = torch.einsum("c,c...->...", weight, z.double())
        variance = torch.einsum("c,c...->...", weight, (z - mean).double().square())
        predictive = torch.einsum("c,c...->...", weight, heads)
        spread = torch.einsum("c,c...->...", weight, (heads - predictive).square()).sqrt()
        edge = weight[(z.abs().amax((1, 2)) > REACH - 1e-6)].sum()
        return Exact(mean, variance, predictive, spread, heads[log_density.argmax()], float(edge))

    def particles(self, kernel: KernelKind, count: int, steps: int, seed: int) -> Float[Tensor, "M L n"]:
        """Where SVGD ends from draws of the prior."""
        shape = self.plane.directions.shape[:2]
        start = torch.randn(count, *shape, generator=generator("particles", seed))
        rule = Svgd(
            AdamW(Rate((0.2,), 1.0, "linear", steps)),
            make_kernel(kernel),
            count=self.count,
            penalty=lambda params: params["z"].square().flatten(1).sum(1) / (2 * self.count),
        )
        return train(Run("plane", self.objective, rule, {"z": start}, self, steps)).params["z"]  # draws: `batch`


@dataclass(frozen=True, eq=False)
class Exact:
    """What the grid says: mean and variance of z, E p(heads), its standard deviation, p(heads) at the mode, and the
    probability at the border of the grid (what it may miss)."""

    mean: Float[Tensor, "L n"]
    variance: Float[Tensor, "L n"]
    predictive: Float[Tensor, "hands coins"]
    spread: Float[Tensor, "hands coins"]
    at_mode: Float[Tensor, "hands coins"]
    edge: float

    def compare(self, z: Float[Tensor, "M L n"], heads: Float[Tensor, "M hands coins"]) -> dict[str, float]:
        """How far M particles are from it. `monte_carlo` is the error that M independent exact draws would have."""
        z = z.double()
        return {
            "error": rms(heads.mean(0) - self.predictive),
            "monte_carlo": rms(self.spread) / math.sqrt(len(z)),
            "variance": float(z.var(0).sum() / self.variance.sum()),
            "off_centre": float(((z.mean(0) - self.mean).square() / self.variance).mean().sqrt()),
            "edge": self.edge,
        }


def rms(values: Tensor) -> float:
    """The root mean square, of any shape."""
    return float(values.square().mean().sqrt())


# In many dimensions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnitGaussian:
    """An objective without a model: minus the log-density of N(0, 1) for every number of "x" [C, tokens, width]."""

    backbone: Any = None

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        """Half the squared norm of each row's copy, in nats."""
        return (params["x"].square().flatten(1).sum(1) / 2)[batch.row_copy]

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> list[Batch]:  # noqa: ARG002
        """All at once."""
        return [batch]


@cache
def one_row() -> Batch:
    """A batch of one row, whose text nobody reads."""
    return collate([Tokens((0,), ((0,),))])


def gaussian_variance(kernel: KernelKind, block: int, particles: int, shape: tuple[int, int], seed: int) -> float:
    """The variance that SVGD keeps of a unit Gaussian in tokens x width dimensions, from exact draws; 1 is right."""
    steps = 400
    start = torch.randn(particles, *shape, generator=generator("gaussian", seed))
    rule = Svgd(AdamW(Rate((0.1,), 1.0, "linear", steps)), make_kernel(kernel, block))
    state = rule.init({"x": start})
    for _ in range(steps):
        state, _ = rule.step(state, one_row(), UnitGaussian())
    x = state.params["x"]
    return float(x.var(0).mean())

"""What particles of a posterior over prompts give a target: where it starts, what pulls it back, how they lie.

Target adaptation of BMTPT is MAP, argmax p(D_T | x) p(x | sources). With a Gaussian link of width s around each of M
particles the prior is (1/M) sum_i N(x; x_i, s^2 I); divided by the target's N examples its negative logarithm is

    mixture   -(1/N) log (1/M) sum_i exp(-||x - x_i||^2 / (2 s^2))
    gaussian   (1/N) ||x - mean||^2 / (2 s^2)                           Jensen's bound, up to a constant

in nats per example, as the mean loss is. Which of the two, and which s, the authors used is not known.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from promptprior.errors import SpecError, unknown_name
from promptprior.notation import Float, Params, Tensor

StartKind = Literal["mean", "weighted", "best", "sampled"]
PenaltyKind = Literal["gaussian", "mixture", "none"]


def start(
    particles: Float[Tensor, "M L D"],
    kind: StartKind,
    losses: Float[Tensor, " M"],
    count: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "L D"]:
    """The prompt a target starts from.

    `mean` maximises the Gaussian form of the prior; `weighted` is the mean under weights exp(-count * loss); `best` has
    the least loss, of the sources or of a target's dev shots; `sampled` is one of them at random.
    """
    if kind == "mean":
        return particles.mean(0)
    if kind == "weighted":
        return torch.tensordot(weights(losses, count).to(particles), particles, dims=1)
    if kind == "best":
        return particles[losses.argmin()]
    if kind == "sampled":
        return particles[int(torch.randint(len(particles), (1,), generator=generator))]
    raise SpecError(unknown_name("start", kind, ("mean", "weighted", "best", "sampled")) + " (--start)")


def weights(losses: Float[Tensor, " M"], count: float) -> Float[Tensor, " M"]:
    """exp(-count * loss), summing to one: particles by the likelihood of `count` examples with that mean loss."""
    return torch.softmax(-count * losses.double(), dim=0)


@dataclass(frozen=True, eq=False)
class GaussianPenalty:
    """`strength` times the squared distance of each copy from its centre; strength is 1 / (2 s^2 N)."""

    centre: Float[Tensor, "C L D"]
    strength: Float[Tensor, " C"]
    tensor: str = "prompt"

    def __call__(self, params: Params) -> Float[Tensor, " C"]:
        """Nats per example of each copy."""
        return (params[self.tensor] - self.centre).square().flatten(1).sum(1) * self.strength


def penalty(
    kind: PenaltyKind,
    posteriors: Float[Tensor, "S M L D"],
    which: Sequence[int],
    widths: Sequence[float],
    examples: Sequence[int],
    scale: float,
) -> Callable[[Params], Float[Tensor, " C"]] | None:
    """The prior term of copies: copy c has posterior which[c], width widths[c] (times scale) and examples[c] shots."""
    if kind not in ("gaussian", "mixture", "none"):
        raise SpecError(unknown_name("penalty", kind, ("gaussian", "mixture", "none")) + " (--penalty)")
    if kind == "none":
        return None
    place = torch.tensor(which, device=posteriors.device)
    width = torch.tensor(widths).to(posteriors) * scale
    shots = torch.tensor(examples).to(posteriors)
    if kind == "gaussian":
        return GaussianPenalty(posteriors.mean(1)[place], 1 / (2 * width.square() * shots))

    def mixture(params: Params) -> Float[Tensor, " C"]:
        apart = [  # one particle at a time: no tensor of C x M prompts
            (params["prompt"] - posteriors[place, m]).square().flatten(1).sum(1) for m in range(posteriors.shape[1])
        ]
        exponents = -torch.stack(apart) / (2 * width.square())
        return (math.log(len(apart)) - torch.logsumexp(exponents, dim=0)) / shots

    return mixture


def geometry(particles: Float[Tensor, "M L D"], scale: float) -> dict[str, object]:
    """How particles lie, for a header: lengths in units of the embedding scale.

    It has `distances` of all pairs, `kernel`, the RBF values at the median bandwidth, and `spread`, the standard
    deviation of an entry across particles. `size` is the root mean square of the mean's entries, to compare with.
    `directions` is how many directions the spread has: (sum of variances)^2 / sum of squared variances, at most M - 1.
    """
    flat = particles.flatten(1).double()
    centred = flat - flat.mean(0)
    squared = torch.cdist(centred, centred).square()
    variances = torch.linalg.eigvalsh(centred @ centred.T).clamp(min=0)
    i, j = torch.triu_indices(len(flat), len(flat), offset=1)
    pairs = squared[i, j]  # the bandwidth of rules.stein_kernels: their median over log(M + 1); 1 where all are equal
    bandwidth = float(pairs.median()) / math.log(len(flat) + 1) if len(pairs) and pairs.median() > 0 else 1.0

    matrices = {"distances": squared.sqrt() / scale, "kernel": torch.exp(-squared / bandwidth)}
    return {
        **{name: [[float(f"{v:.6g}") for v in row] for row in matrix.tolist()] for name, matrix in matrices.items()},
        "spread": deviation(particles) / scale,
        "size": float(flat.mean(0).square().mean().sqrt()) / scale,
        "directions": float(variances.sum().square() / variances.square().sum()) if variances.sum() > 0 else 0.0,
    }


def deviation(particles: Float[Tensor, "M L D"]) -> float:
    """The standard deviation of an entry across particles: the root mean square over all entries."""
    flat = particles.flatten(1).double()
    return float((flat - flat.mean(0)).square().mean().sqrt())

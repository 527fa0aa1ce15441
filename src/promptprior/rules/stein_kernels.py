"""Kernels of Stein variational gradient descent over M particles, in Gram form: no tensor is ever M x M x D.

A kernel works on blocks, sets of coordinates that see each other: for block b with bandwidth h_b,

    k_b(x, y) = exp(-||x_b - y_b||^2 / h_b),   h_b = median_{i<j} ||x_b - y_b||^2 / log(M + 1)

and block b of a particle is moved by k_b alone (a matrix-valued kernel, Wang et al. 2019). `Rbf` has one block, the
whole particle: Liu & Wang 2016. With d coordinates in a block and M << d particles the stationary variance of SVGD on a
unit Gaussian is log(M + 1) / d (docs/bmtpt.md derives it), so small blocks keep what large ones lose.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch

from promptprior.errors import SpecError, unknown_name
from promptprior.notation import Float, Params, Tensor

KernelKind = Literal["rbf", "per_token", "projected", "gradient", "none"]


@dataclass(frozen=True)
class Stein:
    """The two forces on every particle, the mean off-diagonal kernel value (0 for one particle) and what it came from.

    `attraction` is (1/M) sum_j k(x_j, x_i) gradient_j; `repulsion` is (1/M) sum_j grad_{x_j} k(x_j, x_i); `squared` are
    the squared distances of whole particles.
    """

    attraction: Params
    repulsion: Params
    similarity: Float[Tensor, ""]
    squared: Float[Tensor, "M M"]


class Kernel(Protocol):
    """What the rule asks of a kernel."""

    def stein(self, params: Params, gradient: Params) -> Stein:
        """Both forces, for params and gradients with a leading particle axis."""
        ...


@dataclass(frozen=True)
class Independent:
    """No kernel: every particle follows its own gradient, as in `Descent`. The control arm of all others."""

    def stein(self, params: Params, gradient: Params) -> Stein:
        """The gradients themselves and no repulsion."""
        x = flat(params)
        squared = squared_distances((x - x.mean(0))[None])[0]
        return Stein(dict(gradient), {n: torch.zeros_like(p) for n, p in params.items()}, x.new_zeros(()), squared)


@dataclass(frozen=True)
class Rbf:
    """One kernel over all parameters of a particle together, with one scalar bandwidth."""

    def stein(self, params: Params, gradient: Params) -> Stein:
        """Both forces."""
        attraction, repulsion, similarity, squared = block_forces(flat(params)[None], flat(gradient)[None])
        return Stein(unflat(attraction[0], params), unflat(repulsion[0], params), similarity, squared)


@dataclass(frozen=True)
class PerToken:
    """A kernel for every position of every tensor (axis 1 of those with three axes or more; others are one block).

    `block` cuts each position further, into blocks of that many coordinates; 0 leaves it whole.
    """

    block: int = 0

    def stein(self, params: Params, gradient: Params) -> Stein:
        """Both forces."""
        forces: tuple[Params, Params] = ({}, {})  # attraction, repulsion
        similarities, squares = [], []
        for name, value in params.items():
            positions = value.shape[1] if value.dim() >= 3 else 1
            width = self.block or value[0].numel() // positions
            blocks = []
            for tensor in (value, gradient[name]):
                wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
                rows = wide.reshape(len(wide), positions, -1)  # [M, positions, n]
                padded = torch.nn.functional.pad(rows, (0, -rows.shape[2] % width))  # zeros change no distance
                blocks.append(padded.reshape(len(wide), -1, width).transpose(0, 1))  # [B, M, width]
            *both, similarity, squared = block_forces(*blocks)
            for force, moved in zip(forces, both, strict=True):
                rows = moved.transpose(0, 1).reshape(len(value), positions, -1)  # [M, positions, n and padding]
                unpadded = rows[:, :, : value[0].numel() // positions]
                force[name] = unpadded.reshape(value.shape).to(value)
            similarities.append(similarity)
            squares.append(squared)
        return Stein(*forces, torch.stack(similarities).mean(), torch.stack(squares).sum(0))


@dataclass(frozen=True)
class Projected:
    """A kernel of its own in a subspace of `dimensions` coordinates, plain RBF in the rest.

    With `subspace` "random" the subspace is fixed by `seed`; "gradient" takes the span of the particles' gradients at
    this step (at most M dimensions; after Chen & Ghattas 2020, who use a likelihood-informed subspace). Only the
    subspace keeps its variance: the rest is as collapsed as under RBF.
    """

    dimensions: int = 16
    subspace: Literal["random", "gradient"] = "random"
    seed: int = 0

    def stein(self, params: Params, gradient: Params) -> Stein:
        """Both forces: those of RBF, with their part inside the subspace exchanged for that of the inner kernel."""
        x, g = flat(params), flat(gradient)
        basis = self.basis(g)
        *outer, _, squared = block_forces(x[None], g[None])
        *inner, similarity, _ = block_forces((x @ basis)[None], (g @ basis)[None])
        attraction, repulsion = (
            unflat(whole[0] + (part[0] - whole[0] @ basis) @ basis.T, params)
            for whole, part in zip(outer, inner, strict=True)
        )
        return Stein(attraction, repulsion, similarity, squared)

    def basis(self, gradient: Float[Tensor, "M n"]) -> Float[Tensor, "n p"]:
        """Orthonormal columns that span the subspace."""
        if self.subspace == "gradient":
            return torch.linalg.qr(gradient.T)[0]
        size = gradient.shape[1]
        return _random_basis(self.seed, size, min(self.dimensions, size)).to(gradient)


@lru_cache(maxsize=4)  # the decomposition is dear, and every step asks for the same one
def _random_basis(seed: int, size: int, dimensions: int) -> Float[Tensor, "n p"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, dimensions, generator=generator, dtype=torch.float64))[0]


def block_forces(
    x: Float[Tensor, "B M n"], gradient: Float[Tensor, "B M n"]
) -> tuple[Float[Tensor, "B M n"], Float[Tensor, "B M n"], Float[Tensor, ""], Float[Tensor, "M M"]]:
    """Attraction, repulsion, mean off-diagonal kernel value and squared distances over all blocks.

    Everything comes from M x M matrices. The bandwidth is med^2 / log(M + 1), the median over pairs of squared
    distances: Liu & Wang 2016 divide by log M; M + 1 is safe for few particles.
    """
    particles = x.shape[1]
    centred = x - x.mean(1, keepdim=True)
    squared = squared_distances(centred)  # [B, M, M]
    bandwidth = squared.new_ones(len(squared))  # [B]; 1 where no two particles differ
    if particles > 1:
        pairs = off_diagonal(squared)
        median = torch.quantile(pairs, 0.5, dim=1)
        mean = pairs.mean(1)  # for when more than half of the pairs coincide, but not all
        chosen = torch.where(median > 0, median, mean)
        bandwidth = torch.where(chosen > 0, chosen / math.log(particles + 1), 1)
    kernel = torch.exp(-squared / bandwidth[:, None, None])
    # sum_j grad_{x_j} k(x_j, x_i) = (2/h) sum_j k_ij (x_i - x_j): a Laplacian of the kernel times the particles
    laplacian = (torch.diag_embed(kernel.sum(2)) - kernel) * (2 / bandwidth / particles)[:, None, None]
    similarity = off_diagonal(kernel).mean() if particles > 1 else kernel.new_zeros(())
    return (kernel / particles) @ gradient, laplacian @ centred, similarity, squared.sum(0)


def squared_distances(centred: Float[Tensor, "B M n"]) -> Float[Tensor, "B M M"]:
    """||x_i - x_j||^2 from the Gram matrix of centred particles; 0 where it is below what rounding can tell."""
    gram = centred @ centred.transpose(1, 2)
    norms = gram.diagonal(dim1=1, dim2=2)
    sums = norms[:, :, None] + norms[:, None, :]
    squared = sums - 2 * gram
    noise = 16 * torch.finfo(centred.dtype).eps * sums
    squared = torch.where(squared > noise, squared, 0)
    return squared.masked_fill(torch.eye(squared.shape[1], dtype=torch.bool, device=squared.device), 0)


def off_diagonal(matrix: Float[Tensor, "B M M"]) -> Float[Tensor, "B pairs"]:
    """The entries above the diagonal."""
    i, j = torch.triu_indices(matrix.shape[1], matrix.shape[1], offset=1, device=matrix.device)
    return matrix[:, i, j]


def flat(params: Params) -> Float[Tensor, "M n"]:
    """All parameters of each particle as one vector, in float32 or better."""
    parts = [value.flatten(1) for value in params.values()]
    joint = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    return joint.to(torch.promote_types(joint.dtype, torch.float32))


def unflat(joint: Float[Tensor, "M n"], like: Params) -> Params:
    """The inverse of `flat`."""
    parts = joint.split([value[0].numel() for value in like.values()], dim=1)
    return {name: part.reshape(value.shape).to(value) for part, (name, value) in zip(parts, like.items(), strict=True)}


def make_kernel(kind: KernelKind, block: int = 0, dimensions: int = 16, seed: int = 0) -> Kernel:
    """The kernel of a name. Raises SpecError for an unknown one."""
    kernels: dict[str, Kernel] = {
        "rbf": Rbf(),
        "per_token": PerToken(block),
        "projected": Projected(dimensions, "random", seed),
        "gradient": Projected(dimensions, "gradient"),
        "none": Independent(),
    }
    if kind not in kernels:
        raise SpecError(unknown_name("kernel", kind, kernels) + " (--kernel)")
    return kernels[kind]

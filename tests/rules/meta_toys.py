"""Objectives small enough to differentiate by hand, and the unrolled MAML that every clever one must equal."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from promptprior.notation import Params, Tensor
from promptprior.rules.inner import InnerAdam, InnerOptimiser, InnerSgd
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.sampling.meta_draws import MetaBatch

Loss = Callable[[Params, int, Batch], Tensor]
"""The mean loss of one copy of params (without the copies axis) on the rows of one unit."""


@dataclass(frozen=True)
class Toy:
    """A row's loss from its copy's params and its own number (the first token of its text)."""

    row: Callable[[Params, Tensor], Tensor]
    pieces: int = 1

    def losses(self, params: Params, batch: Batch) -> Tensor:
        values = batch.text_ids[batch.text_index, 0].double()
        of = batch.row_copy
        rows = [self.row({n: p[c] for n, p in params.items()}, v) for c, v in zip(of, values, strict=True)]
        return torch.stack(rows)

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> Iterable[Batch]:
        if self.pieces == 1:
            yield batch
            return
        for part in torch.arange(batch.texts).chunk(self.pieces):
            yield batch.take(part)


def wave(params: Params, value: Tensor) -> Tensor:
    """Smooth, neither quadratic nor separable."""
    x = params["prompt"].flatten()
    rolled = x.roll(1)
    return torch.sin(x * rolled * value / 3).sum() + 0.1 * (x - value / 5).pow(4).sum() + (x.sum() - value).square() / 9


def linear(params: Params, value: Tensor) -> Tensor:
    """No curvature at all."""
    return params["prompt"].sum() * (value - 4)


def bowl(params: Params, value: Tensor) -> Tensor:
    """0.5 |A x - value|^2 with a fixed A: everything about it has a closed form."""
    return 0.5 * (BOWL @ params["prompt"].flatten() - value).square().sum()


BOWL = torch.tensor([[1.0, 0.2, -0.3, 0.1], [0.0, 0.8, 0.4, 0.0], [0.2, 0.0, 1.1, 0.3]], dtype=torch.float64)


def numbers(values: Sequence[Sequence[int]]) -> Batch:
    """Rows whose loss depends on a number; the u-th list belongs to copy u."""
    flat = [(u, v) for u, some in enumerate(values) for v in some]
    return collate([Tokens((v,), ((1,),)) for _, v in flat], [u for u, _ in flat])


def meta_numbers(steps: int, units: int = 3, owner: Sequence[int] | None = None) -> MetaBatch:
    """Different numbers for every unit, inner step and query; units have different numbers of rows."""
    inner = tuple(
        numbers([[(u + 2 * k + i) % 7 + 1 for i in range(u % 2 + 2)] for u in range(units)]) for k in range(steps)
    )
    query = numbers([[(3 * u + i) % 5 + 1 for i in range(3 - u % 2)] for u in range(units)])
    return MetaBatch(inner, query, torch.tensor(owner if owner is not None else [0] * units))


def unrolled(
    loss: Loss,
    params: Params,
    batch: MetaBatch,
    inner: InnerOptimiser,
    lr_multipliers: Params | None = None,
    order: int = 2,
) -> tuple[Params, Tensor]:
    """The meta-gradient (params, then "inner_rate/" factors) and mean query loss, one unit after another, unrolled."""
    names = {**params, **{f"inner_rate/{n}": f for n, f in (lr_multipliers or {}).items()}}
    leaves = {n: v.detach().clone().requires_grad_() for n, v in names.items()}
    base = {n: leaves[n] for n in params}
    rates = {n: leaves[f"inner_rate/{n}"] for n in lr_multipliers or {}}
    total = torch.zeros((), dtype=torch.float64)
    for u in range(len(batch.owner)):
        p, memory = base, [{n: torch.zeros_like(v) for n, v in base.items()} for _ in range(2)]
        for k, support in enumerate(batch.inner):
            gradient = torch.autograd.grad(loss(p, u, support), list(p.values()), create_graph=order == 2)
            p, memory = plain_step(inner, p, dict(zip(p, gradient, strict=True)), memory, rates, k)
        total = total + loss(p, u, batch.query) / len(batch.owner)
    gradient = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradient, strict=True)), total.detach()


def plain_step(
    inner: InnerOptimiser, p: Params, g: Params, memory: list[Params], rates: Params, k: int
) -> tuple[Params, list[Params]]:
    """SGD or Adam written out, with no code of the library."""
    if isinstance(inner, InnerSgd):
        size = inner.rate * inner.scale**2
        return {n: v - size * rates.get(n, 1) * g[n] for n, v in p.items()}, memory
    assert isinstance(inner, InnerAdam)
    first = {n: inner.beta1 * memory[0][n] + (1 - inner.beta1) * g[n] for n in p}
    second = {n: inner.beta2 * memory[1][n] + (1 - inner.beta2) * g[n] ** 2 for n in p}
    out = {}
    for n, v in p.items():
        hat = first[n] / (1 - inner.beta1 ** (k + 1))
        root = torch.sqrt(second[n] / (1 - inner.beta2 ** (k + 1)) + inner.eps**2)
        out[n] = v - inner.rate * inner.scale * rates.get(n, 1) * hat / root
    return out, [first, second]


def unit_loss(toy: Toy) -> Loss:
    """A toy's mean loss of one unit, from its row function alone."""

    def loss(params: Params, unit: int, batch: Batch) -> Tensor:
        of = batch.text_index[batch.row_copy == unit]
        return torch.stack([toy.row(params, batch.text_ids[x, 0].double()) for x in of]).mean()

    return loss

"""Hessian-vector products of every copy's objective, in bounded memory and without an unrolled graph.

Differentiating twice needs attention whose gradient has a gradient: the engine's own routes have one, the fused kernels
that torch picks for encoder-decoders do not. `second_order` switches those to plain mathematics and says so once.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import Objective, PromptObjective, copies_of, copy_losses, mean_weights, summed
from promptprior.parameterisations.parameterisation import Penalised
from promptprior.tasks.sampling.batch import Batch

SECOND_ORDER_SHARE = 1 / 3  # of the memory budget: a twice differentiated graph is about three times as large

log = logging.getLogger(__name__)


@contextmanager
def second_order(objective: Objective) -> Iterator[Objective]:
    """The same objective, on routes that can be differentiated twice."""
    if isinstance(objective, PromptObjective):
        if objective.backbone.card.is_encoder_decoder:
            say_once(objective.backbone.card.name)
        objective = replace(objective, backbone=objective.backbone.for_second_order())
    with sdpa_kernel(SDPBackend.MATH):
        yield objective


@cache
def say_once(name: str) -> None:
    """Tell whoever listens that attention is slower now."""
    log.info("second order on %s: attention by SDPBackend.MATH, because fused kernels have no second derivative", name)


def hessian_product(objective: Objective, params: Params, batch: Batch, vector: Params) -> Params:
    """H v for every copy's weighted mean loss on a batch and its penalty: d/dparams <dloss/dparams[n], v[n]>, n in v.

    The result has every name of `params`. Exact (Pearlmutter 1994): the gradient is differentiated once more, piece by
    piece, so memory is that of one piece.
    """
    copies = copies_of(params)
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    weighted = replace(batch, weight=mean_weights(batch, copies))
    with second_order(objective) as twice:

        def of(piece: Batch) -> list[Tensor]:
            loss = copy_losses(twice.losses(leaves, piece), piece.weight, piece, copies)
            return along(loss.sum(), leaves, vector)

        parts = summed(of, list(leaves.values()), twice, leaves, weighted, SECOND_ORDER_SHARE)
        penalty = objective.penalty(leaves, batch) if isinstance(objective, Penalised) else None
        if penalty is not None:
            parts = [a + b for a, b in zip(parts, along(penalty.sum(), leaves, vector), strict=True)]
    return dict(zip(leaves, parts, strict=True))


def along(loss: Float[Tensor, ""], leaves: Params, vector: Params) -> list[Tensor]:
    """The Hessian of one differentiable loss times a vector, in the order of `leaves`."""
    moved = [leaves[name] for name in vector]
    gradient = torch.autograd.grad(loss, moved, create_graph=True, materialize_grads=True)
    slope = sum(((g * v).sum() for g, v in zip(gradient, vector.values(), strict=True)), loss.new_zeros(()))
    if not slope.requires_grad:  # a linear loss
        return [torch.zeros_like(value) for value in leaves.values()]
    return list(torch.autograd.grad(slope, list(leaves.values()), materialize_grads=True))


def conjugate_gradients(
    apply: Callable[[Params], Params], right: Params, steps: int, tolerance: float = 1e-6
) -> tuple[Params, Float[Tensor, " C"]]:
    """Solve A x = right for every copy alone, A symmetric positive definite; and each copy's relative residual.

    A copy is left as it is once its residual is below `tolerance` of where it began, or once it meets a direction
    of no positive curvature (the local Hessian of a language model need not be positive definite). Where that is the
    first one, the answer is `right` itself, as in truncated Newton methods.
    """
    solution = {name: torch.zeros_like(value) for name, value in right.items()}
    residual, direction = right, right
    size = inner_product(residual, residual)
    first, going = size, size > 0
    for step in range(steps):
        applied = apply(direction)
        curvature = inner_product(direction, applied)
        if step == 0:
            solution = plus(solution, right, (going & (curvature <= 0)).to(size))
        going = going & (curvature > 0) & (size > tolerance**2 * first)
        if not bool(going.any()):
            break
        length = torch.where(going, size / curvature, 0)
        solution = plus(solution, direction, length)
        residual = plus(residual, applied, -length)
        before, size = size, inner_product(residual, residual)
        direction = plus(residual, direction, torch.where(going, size / before, 0))
    return solution, (size / first.clamp(min=torch.finfo(size.dtype).tiny)).sqrt()


def inner_product(a: Params, b: Params) -> Float[Tensor, " C"]:
    """Each copy's <a, b> over all names."""
    return torch.stack([(a[name] * b[name]).flatten(1).sum(1) for name in a]).sum(0)


def plus(a: Params, b: Params, factor: Float[Tensor, " C"]) -> Params:
    """a + factor b, copy by copy."""
    return {name: value + per_copy(factor, value) * b[name] for name, value in a.items()}


def per_copy(factor: Float[Tensor, " C"], like: Float[Tensor, "C *s"]) -> Float[Tensor, "C *ones"]:
    """One number per copy, shaped to multiply a parameter."""
    return factor.view(-1, *[1] * (like.dim() - 1))

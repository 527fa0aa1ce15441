"""Hessian-vector products of every copy's objective, in bounded memory and without an unrolled graph.

Differentiating twice needs attention whose gradient has a gradient: the engine's own kernels have one, the fused
kernels that torch picks for encoder-decoders do not. Those are switched to plain mathematics, which is logged once.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import (
    Objective,
    PromptObjective,
    copies_of,
    copy_losses,
    mean_weights,
    sum_over_pieces,
)
from promptprior.parameterisations.parameterisation import Penalised
from promptprior.tasks.sampling.batch import Batch

SECOND_ORDER_SHARE = 1 / 3  # of the memory budget: a twice differentiated graph is about three times as large

log = logging.getLogger(__name__)
logged: set[str] = set()  # backbones whose slower attention has been reported


def hessian_product(objective: Objective, params: Params, batch: Batch, vector: Params) -> Params:
    """H v for every copy's weighted mean loss on a batch and its penalty: `d/dparams <dloss/dparams[n], v[n]>`, n in v.

    The result has every name of `params`. Exact (Pearlmutter 1994): the gradient is differentiated once more, piece by
    piece, so memory is that of one piece.
    """
    copies = copies_of(params)
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    inputs = list(leaves.values())
    if isinstance(objective, PromptObjective):
        card = objective.backbone.card
        if card.is_encoder_decoder and card.name not in logged:
            logged.add(card.name)
            log.info(
                "second order on %s: attention by SDPBackend.MATH, because fused kernels have no second derivative",
                card.name,
            )
        objective = replace(objective, backbone=objective.backbone.for_second_order())

    def times_vector(loss: Float[Tensor, ""]) -> list[Tensor]:
        """The Hessian of one differentiable loss times the vector, in the order of `leaves`."""
        gradient = torch.autograd.grad(
            loss, [leaves[name] for name in vector], create_graph=True, materialize_grads=True
        )
        slope = sum(((g * v).sum() for g, v in zip(gradient, vector.values(), strict=True)), loss.new_zeros(()))
        if not slope.requires_grad:  # a linear loss
            return [torch.zeros_like(value) for value in inputs]
        return list(torch.autograd.grad(slope, inputs, materialize_grads=True))

    weighted = replace(batch, weight=mean_weights(batch, copies))
    with sdpa_kernel(SDPBackend.MATH):
        product = sum_over_pieces(
            lambda piece: times_vector(
                copy_losses(objective.losses(leaves, piece), piece.weight, piece, copies).sum()
            ),
            inputs, objective, leaves, weighted, SECOND_ORDER_SHARE,
        )  # fmt: skip
        penalty = objective.penalty(leaves, batch) if isinstance(objective, Penalised) else None
        if penalty is not None:
            product = [a + b for a, b in zip(product, times_vector(penalty.sum()), strict=True)]
    return dict(zip(leaves, product, strict=True))


def conjugate_gradients(
    apply: Callable[[Params], Params], right: Params, steps: int, tolerance: float = 1e-6
) -> tuple[Params, Float[Tensor, " C"]]:
    """Solve `A x = right` for every copy, `A` symmetric positive definite; and each copy's relative residual.

    A copy stops once its residual is below `tolerance` of its first one, or once it meets a direction of no positive
    curvature (the local Hessian of a language model need not be positive definite). Where that is the first direction,
    the answer is `right` itself, as in truncated Newton methods.
    """
    solution = {name: torch.zeros_like(value) for name, value in right.items()}
    residual, direction = right, right
    size = inner_product(residual, residual)  # [C], as all that follow
    first_size, going = size, size > 0
    for step in range(steps):
        applied = apply(direction)
        curvature = inner_product(direction, applied)
        if step == 0:
            solution = add_scaled(solution, right, (going & (curvature <= 0)).to(size))
        going = going & (curvature > 0) & (size > tolerance**2 * first_size)
        if not bool(going.any()):
            break
        length = torch.where(going, size / curvature, 0)
        solution = add_scaled(solution, direction, length)
        residual = add_scaled(residual, applied, -length)
        last_size, size = size, inner_product(residual, residual)
        direction = add_scaled(residual, direction, torch.where(going, size / last_size, 0))
    return solution, (size / first_size.clamp(min=torch.finfo(size.dtype).tiny)).sqrt()


def inner_product(a: Params, b: Params) -> Float[Tensor, " C"]:
    """Each copy's <a, b> over all names."""
    return torch.stack([(a[name] * b[name]).flatten(1).sum(1) for name in a]).sum(0)


def add_scaled(a: Params, b: Params, factor: Float[Tensor, " C"]) -> Params:
    """a + factor b, with one factor for each copy."""
    return {name: value + factor.view(-1, *[1] * (value.dim() - 1)) * b[name] for name, value in a.items()}

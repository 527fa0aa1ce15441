"""What a rule lowers: each row's loss as a function of params, and its gradient in bounded memory."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from promptprior.backbone import Backbone
from promptprior.notation import Float, Params, Tensor
from promptprior.prompts.parameterisation import Parameterisation
from promptprior.tasks.batch import Batch


class Objective(Protocol):
    """Losses of rows under params, and the cut of a batch into pieces that fit into memory."""

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        """Each row's loss."""
        ...

    def split(self, batch: Batch) -> Iterable[Batch]:
        """The batch in pieces; the rows of all pieces are the rows of the batch, in order."""
        ...


@dataclass(frozen=True)
class PromptObjective:
    """The losses of a backbone that reads the prompts a parameterisation makes."""

    backbone: Backbone
    parameterisation: Parameterisation

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        """Mean negative log-likelihood of each row's target, in nats per token."""
        prompts, index = self.parameterisation.prompts(params, batch)
        return self.backbone.losses(prompts, batch.reading(index))

    def split(self, batch: Batch) -> Iterable[Batch]:
        """Pieces within the backbone's memory budget."""
        return self.backbone.split(batch, self.parameterisation.length)


def copies_of(params: Params) -> int:
    """C."""
    return next(iter(params.values())).shape[0]


def mean_weights(batch: Batch, copies: int) -> Float[Tensor, " R"]:
    """Row weights that sum to one within each copy: a copy's objective is the weighted mean over its rows."""
    total = batch.weight.new_zeros(copies).index_add(0, batch.row_copy, batch.weight)
    return batch.weight / total[batch.row_copy]


def copy_losses(losses: Float[Tensor, " R"], weights: Float[Tensor, " R"], batch: Batch, copies: int) -> Tensor:
    """Each copy's weighted mean loss, Float[C]; 0 for a copy without rows."""
    weighted = losses * weights.to(losses)
    return weighted.new_zeros(copies).index_add(0, batch.row_copy.to(losses.device), weighted)


def loss_and_gradient(objective: Objective, params: Params, batch: Batch) -> tuple[Float[Tensor, " C"], Params]:
    """Every copy's mean loss and its gradient, piece by piece; exactly as if each copy were alone."""
    copies = copies_of(params)
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    total = next(iter(leaves.values())).new_zeros(copies).detach()
    gradient = {name: torch.zeros_like(value) for name, value in leaves.items()}
    for piece in objective.split(replace(batch, weight=mean_weights(batch, copies))):
        loss = copy_losses(objective.losses(leaves, piece), piece.weight, piece, copies)
        parts = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
        for name, part in zip(leaves, parts, strict=True):
            gradient[name] += part if part is not None else 0
        total += loss.detach()
    return total, gradient

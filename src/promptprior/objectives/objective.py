"""What a rule minimises: each row's loss as a function of params, and its gradient in bounded memory."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from promptprior.backbone import Backbone, Site, backing_off, own_share
from promptprior.backbone.generate import Steps
from promptprior.backbone.key_values import Prompts, computed_tokens
from promptprior.notation import Bool, Float, Params, Tensor
from promptprior.parameterisations.parameterisation import Masking, Offsetting, Parameterisation, Penalised
from promptprior.processes import add_up
from promptprior.tasks.sampling.batch import Batch


class Objective(Protocol):
    """Losses of rows under params, and the cut of a batch into pieces that fit into memory."""

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        """Each row's loss, in nats."""
        ...

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> Iterable[Batch]:
        """The batch in pieces that fit into a share of the memory; their rows are the batch's, in order."""
        ...


@dataclass(frozen=True)
class PromptObjective:
    """The losses of a backbone that reads the prompts a parameterisation makes."""

    backbone: Backbone
    parameterisation: Parameterisation

    def reading(self, params: Params, batch: Batch) -> tuple[Backbone, Prompts, Batch, Bool[Tensor, "P L"] | None]:
        """The backbone that reads the batch, the prompts, the batch with the prompt of each text, and hidden tokens."""
        form = self.parameterisation
        prompts, index = form.prompts(params, batch)
        backbone, read = self.backbone, batch.reading(index)
        if isinstance(form, Offsetting):
            backbone, read = backbone.with_offsets(form.offsets(params), read)
        hidden = form.hidden(params, batch) if isinstance(form, Masking) else None
        return backbone, prompts, read, hidden

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        """Mean negative log-likelihood of each row's target, in nats per token.

        Without gradients texts are sorted by prompt, so that a prompt is computed by as few pieces as possible.
        """
        backbone, prompts, read, hidden = self.reading(params, batch)
        if torch.is_grad_enabled():  # in training `split` has cut the batch before
            return backbone.losses(prompts, read, hidden)
        by_prompt, rows = read.reordered(read.prompt_index.argsort(stable=True))
        losses = backbone.losses(prompts, by_prompt, hidden)
        return torch.empty_like(losses).index_copy(0, rows.to(losses.device), losses)

    def text_states(self, params: Params, batch: Batch, sites: Sequence[Site]) -> Float[Tensor, "X S W"]:
        """Each text's states behind its prompt, pooled at every site; targets are not read."""
        backbone, prompts, read, hidden = self.reading(params, batch.texts_only())
        if torch.is_grad_enabled():
            return backbone.text_states(prompts, read, sites, hidden)
        order = read.prompt_index.argsort(stable=True)
        states = backbone.text_states(prompts, read.reordered(order)[0], sites, hidden)
        return torch.empty_like(states).index_copy(0, order.to(states.device), states)

    def generate(self, params: Params, batch: Batch, max_new_tokens: int) -> list[str]:
        """The first line of greedy text after each text."""
        backbone, prompts, read, hidden = self.reading(params, batch)
        return backbone.generate(prompts, read, max_new_tokens, first_line=True, hidden=hidden)

    def token_steps(self, params: Params, batch: Batch, max_new_tokens: int) -> Steps:
        """Greedy tokens after each text as they are made, in whole lines and beyond (backbone/generate.py)."""
        backbone, prompts, read, hidden = self.reading(params, batch)
        return backbone.token_steps(prompts, read, max_new_tokens, hidden)

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> Iterable[Batch]:
        """Pieces within a share of the backbone's memory budget, whichever prompts the texts turn out to read."""
        with torch.no_grad():
            prompts, index = self.parameterisation.prompts(params, batch)
        limited = replace(self.backbone, max_tokens=max(1, int(share * self.backbone.max_tokens)))
        return limited.split(batch.reading(index), computed_tokens(prompts))

    def penalty(self, params: Params, batch: Batch) -> Float[Tensor, " C"] | None:
        """The parameterisation's own term, if it has one."""
        form = self.parameterisation
        return form.penalty(params, batch) if isinstance(form, Penalised) else None


def copies_of(params: Params) -> int:
    """C, the number of copies."""
    return next(iter(params.values())).shape[0]


def mean_weights(batch: Batch, copies: int) -> Float[Tensor, " R"]:
    """Row weights for which a copy's objective is the weighted mean over its rows.

    They sum to one within each copy, or with the batch's `weight_total` do so in the mean over draws.
    """
    weight = batch.weight.double()
    if batch.weight_total is not None:
        return weight / batch.weight_total
    total = weight.new_zeros(copies).index_add(0, batch.row_copy, weight)
    return weight / total[batch.row_copy]


def copy_losses(losses: Float[Tensor, " R"], weights: Float[Tensor, " R"], batch: Batch, copies: int) -> Tensor:
    """Each copy's weighted mean loss, Float[C], in nats as `losses` are; 0 for a copy without rows."""
    weighted = losses * weights.to(losses)
    return weighted.new_zeros(copies).index_add(0, batch.row_copy.to(losses.device), weighted)


def loss_and_gradient(objective: Objective, params: Params, batch: Batch) -> tuple[Float[Tensor, " C"], Params]:
    """Every copy's mean loss in nats, and the gradient of it and of the objective's own penalty.

    Losses go piece by piece, the penalty sees the whole batch; a copy's result does not depend on the others.
    """
    copies = copies_of(params)
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    inputs = list(leaves.values())

    def of_piece(piece: Batch) -> list[Tensor]:
        loss = copy_losses(objective.losses(leaves, piece), piece.weight, piece, copies)
        parts = torch.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True)
        return [loss.detach(), *parts]

    like = [inputs[0].new_zeros(copies), *inputs]
    weighted = replace(batch, weight=mean_weights(batch, copies))
    loss, *gradient = sum_over_pieces(of_piece, like, objective, leaves, weighted)
    penalty = objective.penalty(leaves, batch) if isinstance(objective, Penalised) else None
    if penalty is not None:
        added = torch.autograd.grad(penalty.sum(), inputs, allow_unused=True, materialize_grads=True)
        gradient = [part + other for part, other in zip(gradient, added, strict=True)]
    return loss, dict(zip(leaves, gradient, strict=True))


def sum_over_pieces(
    of_piece: Callable[[Batch], Sequence[Tensor]],
    like: Sequence[Tensor],
    objective: Objective,
    params: Params,
    batch: Batch,
    share: float = 1.0,
) -> list[Tensor]:
    """The sum of `of_piece` over the pieces of a batch, tensors shaped `like` these; `of_piece` must add up over texts.

    Texts are split over processes, and each process's into pieces that fit into a share of memory. A piece that does
    not fit after all is halved and tried again; nothing of it has been added by then.
    """
    totals = [torch.zeros_like(t) for t in like]
    mine = own_share(batch)
    pieces = objective.split(params, mine, share) if mine is not None else ()
    for values in backing_off(pieces, of_piece):
        for total, value in zip(totals, values, strict=True):
            total += value
    add_up(totals)
    return totals

"""Losses as a function of weights of the trunk, and the objective of any form that params may have.

A rule, an exam and the training loop see no difference: params are named tensors with a leading copies axis.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

import torch

from promptprior.backbone import Backbone
from promptprior.backbone.weight_overrides import Trunk
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import Objective, PromptObjective
from promptprior.parameterisations.registry import Form
from promptprior.parameterisations.weights import WeightForm
from promptprior.tasks.sampling.batch import Batch

Result = TypeVar("Result")


class Answering(Objective, Protocol):
    """An objective that can also be asked for text."""

    @property
    def backbone(self) -> Backbone:
        """What tokenises, and counts the work."""
        ...

    def generate(self, params: Params, batch: Batch, max_new_tokens: int) -> list[str]:
        """The first line of greedy text after each text."""
        ...


@dataclass(frozen=True)
class WeightObjective:
    """The losses of a backbone that is lent weights: each copy's texts by themselves, since weights are not shared."""

    backbone: Backbone
    form: WeightForm

    @cached_property
    def trunk(self) -> Trunk:
        """Made once."""
        return self.form.trunk(self.backbone)

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        """Mean negative log-likelihood of each row's target, in nats per token."""
        weights = unstacked(params)
        parts = by_copy(batch, lambda copy, texts: self.trunk.losses(weights[copy], texts))
        rows = torch.cat([(batch.row_copy == copy).nonzero().flatten() for copy, _ in parts])
        return torch.cat([losses for _, losses in parts])[rows.argsort()]

    def generate(self, params: Params, batch: Batch, max_new_tokens: int) -> list[str]:
        """The first line of greedy text after each text."""
        weights = unstacked(params)
        parts = by_copy(batch, lambda copy, texts: self.trunk.generate(weights[copy], texts, max_new_tokens))
        texts = torch.cat([(batch.copy_index == copy).nonzero().flatten() for copy, _ in parts]).tolist()
        return [text for _, text in sorted(zip(texts, (t for _, some in parts for t in some), strict=True))]

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> Iterable[Batch]:  # noqa: ARG002  no prompts
        """Pieces within a share of the backbone's memory budget."""
        return replace(self.backbone, max_tokens=max(1, int(share * self.backbone.max_tokens))).split(batch, 0)


def objective_of(backbone: Backbone, form: Form) -> Answering:
    """The losses of a backbone under params of a form."""
    return WeightObjective(backbone, form) if isinstance(form, WeightForm) else PromptObjective(backbone, form)


def unstacked(params: Params) -> list[Mapping[str, Tensor]]:
    """The weights of each copy."""
    each = {name: value.unbind(0) for name, value in params.items()}  # one gradient for all copies, not one for each
    return [dict(zip(each, values, strict=True)) for values in zip(*each.values(), strict=True)]


def by_copy(batch: Batch, of: Callable[[int, Batch], Result]) -> list[tuple[int, Result]]:
    """What `of` makes of the texts of each copy in a batch."""
    copies = batch.copy_index.unique().tolist()
    return [(copy, of(copy, batch.take((batch.copy_index == copy).nonzero().flatten()))) for copy in copies]

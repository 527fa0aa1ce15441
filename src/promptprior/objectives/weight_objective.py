"""Losses of forms that answer without a prompt (weights of the model, say), and the objective of any form.

A rule, an exam and the training loop see no difference: params are named tensors with a leading copies axis.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

import torch

from promptprior.backbone import Backbone
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import Objective, PromptObjective
from promptprior.parameterisations.parameterisation import AnsweringForm, Answers
from promptprior.parameterisations.registry import Form
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
    """The losses of a form that answers by itself: each copy's texts apart, since copies share no computation."""

    backbone: Backbone
    form: AnsweringForm

    @cached_property
    def answers(self) -> Answers:
        """Made once."""
        return self.form.answers(self.backbone)

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        """Mean negative log-likelihood of each row's target, in nats per token."""
        weights = unstacked(params)
        parts = by_copy(batch, lambda copy, texts: self.answers.losses(weights[copy], texts))
        rows = torch.cat([(batch.row_copy == copy).nonzero().flatten() for copy, _ in parts])
        return torch.cat([losses for _, losses in parts])[rows.argsort()]

    def generate(self, params: Params, batch: Batch, max_new_tokens: int) -> list[str]:
        """The first line of greedy text after each text."""
        weights = unstacked(params)
        parts = by_copy(batch, lambda copy, texts: self.answers.generate(weights[copy], texts, max_new_tokens))
        texts = torch.cat([(batch.copy_index == copy).nonzero().flatten() for copy, _ in parts]).tolist()
        return [text for _, text in sorted(zip(texts, (t for _, some in parts for t in some), strict=True))]

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> Iterable[Batch]:  # noqa: ARG002
        """Pieces within a share of the backbone's memory budget; nothing in front of a text is shared with others."""
        limited = replace(self.backbone, max_tokens=max(1, int(share * self.backbone.max_tokens)))
        return limited.split(batch.reading(torch.arange(batch.texts)), self.answers.length)


def objective_of(backbone: Backbone, form: Form) -> Answering:
    """The losses of a backbone under params of a form."""
    return WeightObjective(backbone, form) if isinstance(form, AnsweringForm) else PromptObjective(backbone, form)


def unstacked(params: Params) -> list[Mapping[str, Tensor]]:
    """The weights of each copy."""
    each = {name: value.unbind(0) for name, value in params.items()}  # one gradient for all copies, not one for each
    return [dict(zip(each, values, strict=True)) for values in zip(*each.values(), strict=True)]


def by_copy(batch: Batch, of: Callable[[int, Batch], Result]) -> list[tuple[int, Result]]:
    """What `of` makes of the texts of each copy in a batch."""
    copies = batch.copy_index.unique().tolist()
    return [(copy, of(copy, batch.take((batch.copy_index == copy).nonzero().flatten()))) for copy in copies]

"""Losses of forms that answer without a prompt (weights of the model, say), and the objective of any form.

A rule, an evaluation set and the training loop see no difference: params are named tensors with a leading copies axis.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch

from promptprior.backbone import Backbone, Site
from promptprior.errors import SpecError
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import Objective, PromptObjective
from promptprior.parameterisations.parameterisation import AnsweringForm, Answers, StateAnswers
from promptprior.parameterisations.registry import Form
from promptprior.tasks.sampling.batch import Batch


class Answering(Objective, Protocol):
    """An objective that can also be asked for text."""

    @property
    def backbone(self) -> Backbone:
        """What tokenises, and counts the work."""
        ...

    def generate(self, params: Params, batch: Batch, max_new_tokens: int) -> list[str]:
        """The first line of greedy text after each text."""
        ...

    def text_states(self, params: Params, batch: Batch, sites: Sequence[Site]) -> Float[Tensor, "X S W"]:
        """Each text's states, pooled at every site; targets are not read."""
        ...


@dataclass(frozen=True)
class WeightObjective:
    """The losses of a form that answers by itself: copy after copy, since copies share no computation."""

    backbone: Backbone
    form: AnsweringForm

    @cached_property
    def answers(self) -> Answers:
        """What computes under the params of one copy, made once."""
        return self.form.answers(self.backbone)

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        """Mean negative log-likelihood of each row's target, in nats per token."""
        parts = [
            (self.answers.losses(own, texts), (batch.row_copy == copy).nonzero().flatten())
            for copy, own, texts in _by_copy(params, batch)
        ]
        losses, rows = (torch.cat(each) for each in zip(*parts, strict=True))
        return losses[rows.argsort()]

    def text_states(self, params: Params, batch: Batch, sites: Sequence[Site]) -> Float[Tensor, "X S W"]:
        """Each text's states, pooled at every site; targets are not read. Raises SpecError for a form without any."""
        answers, parts, order = self.answers, [], []
        if not isinstance(answers, StateAnswers):
            raise SpecError(
                f"parameterisation {self.form.name!r} hands out no states, so no head can read them: use the head "
                "verbalizer, or give what it answers with a method text_states"
            )
        for copy, own, texts in _by_copy(params, batch):
            parts.append(answers.text_states(own, texts, sites))
            order.append((batch.copy_index == copy).nonzero().flatten())
        return torch.cat(parts)[torch.cat(order).argsort()]

    def generate(self, params: Params, batch: Batch, max_new_tokens: int) -> list[str]:
        """The first line of greedy text after each text."""
        text_of: dict[int, str] = {}
        for copy, own, texts in _by_copy(params, batch):
            indices = (batch.copy_index == copy).nonzero().flatten().tolist()
            text_of |= zip(indices, self.answers.generate(own, texts, max_new_tokens), strict=True)
        return [text_of[text] for text in range(batch.texts)]

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> Iterable[Batch]:  # noqa: ARG002
        """Pieces within a share of the backbone's memory budget; nothing in front of a text is shared with others."""
        limited = replace(self.backbone, max_tokens=max(1, int(share * self.backbone.max_tokens)))
        return limited.split(batch.reading(torch.arange(batch.texts)), self.answers.length)


def objective_of(backbone: Backbone, form: Form) -> Answering:
    """The losses of a backbone under params of a form."""
    return WeightObjective(backbone, form) if isinstance(form, AnsweringForm) else PromptObjective(backbone, form)


def _by_copy(params: Params, batch: Batch) -> Iterator[tuple[int, Params, Batch]]:
    """Each copy that a batch reads, its params without the copies axis, and its texts."""
    each = {name: value.unbind(0) for name, value in params.items()}  # one gradient for all copies, not one for each
    for copy in batch.copy_index.unique().tolist():
        texts = (batch.copy_index == copy).nonzero().flatten()
        yield copy, {name: values[copy] for name, values in each.items()}, batch.take(texts)

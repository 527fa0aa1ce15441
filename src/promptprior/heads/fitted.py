"""A head with the params that shots gave it, and how an artifact keeps it: tensors named "head.*" beside the prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from promptprior.heads.head import Head, Readout
from promptprior.notation import Float, Params, Tensor

PREFIX = "head."


@dataclass(frozen=True)
class FittedHead:
    """A head and its params, those of one copy of a prompt."""

    head: Head
    params: Params

    def choice_nll(self, readout: Readout) -> Float[Tensor, "X K"]:
        """Minus the log probability of each choice, in nats."""
        return self.head.choice_nll(self.params, readout)


def without_head(params: Params) -> Params:
    """The params of the form alone."""
    return {name: value for name, value in params.items() if not name.startswith(PREFIX)}


def with_heads(params: Params, heads: Sequence[FittedHead]) -> Params:
    """The params of a form, and those of the head of each of its copies."""
    names = heads[0].params if heads else ()
    return {**params, **{PREFIX + name: torch.stack([head.params[name] for head in heads]) for name in names}}


def fitted_heads(head: Head, params: Mapping[str, Tensor]) -> tuple[FittedHead, ...]:
    """The head of every copy, from an artifact's params."""
    own = {name.removeprefix(PREFIX): value for name, value in params.items() if name.startswith(PREFIX)}
    copies = next(iter(params.values())).shape[0]
    return tuple(FittedHead(head, {name: value[c] for name, value in own.items()}) for c in range(copies))

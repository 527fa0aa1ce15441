"""A head with the params that shots gave it, and how an artifact keeps it: tensors named "head.*" beside the prompt."""

from collections.abc import Mapping
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


def with_head(params: Params, head: FittedHead) -> Params:
    """The params of a form of one copy, and those of its head."""
    return {
        **params,
        **{
            PREFIX + name: value[None].clone(memory_format=torch.contiguous_format)
            for name, value in head.params.items()
        },
    }


def fitted_head(head: Head, params: Mapping[str, Tensor]) -> FittedHead:
    """The head with its params among an artifact's."""
    return FittedHead(head, {n.removeprefix(PREFIX): v[0] for n, v in params.items() if n.startswith(PREFIX)})

"""A head with the params that shots gave it, and how an artifact keeps it: tensors named "head.*" beside the prompt."""

from dataclasses import dataclass

from promptprior.heads.head import Head
from promptprior.notation import Params

PREFIX = "head."


@dataclass(frozen=True)
class FittedHead:
    """A head and its params, those of one copy of a prompt."""

    head: Head
    params: Params


def without_head(params: Params) -> Params:
    """The params of the form alone."""
    return {name: value for name, value in params.items() if not name.startswith(PREFIX)}

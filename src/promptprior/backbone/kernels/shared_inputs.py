"""How tokens enter the first block, where much is shared or frozen.

Before the first attention a token's numbers depend on the token alone. So what several texts repeat is normed and
projected once, and below the first attention no gradient is carried to tokens that are never trained.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from promptprior.notation import Float, Int, Tensor


class Entry(Protocol):
    """Which input row each token reads, and which rows want a gradient: always the first ones."""

    def spread(self, x: Float[Tensor, "S w"]) -> Float[Tensor, "N w"]:
        """What each token reads."""
        ...

    def gathered(self, gradient: Float[Tensor, "N w"]) -> Float[Tensor, "n w"]:
        """The gradient of the rows that want one, given that of every token: the transpose of `spread`."""
        ...


@dataclass(frozen=True)
class Leading:
    """Each token is an input row; the first `learned` want a gradient, or all for None."""

    learned: int | None = None

    def spread(self, x: Float[Tensor, "S w"]) -> Float[Tensor, "N w"]:
        """The rows themselves."""
        return x

    def gathered(self, gradient: Float[Tensor, "N w"]) -> Float[Tensor, "n w"]:
        """The first of them."""
        return gradient[: self.learned]


@dataclass(frozen=True, eq=False)
class Repeated:
    """Each text repeats the rows of the prompt it reads; rows are P prompts of L tokens, then text tokens.

    `source` names the row of each token, `prompts` the tokens that read prompts, text after text; `reads` is 1 where a
    text reads a prompt.
    """

    source: Int[Tensor, " N"]
    prompts: Int[Tensor, " XL"]
    reads: Float[Tensor, "P X"]

    def spread(self, x: Float[Tensor, "S w"]) -> Float[Tensor, "N w"]:
        """Each token's row."""
        return x.index_select(0, self.source)

    def gathered(self, gradient: Float[Tensor, "N w"]) -> Float[Tensor, "PL w"]:
        """The sum over the texts that read a prompt: a product, which adds up in float32 also where half goes in."""
        of_texts = gradient.index_select(0, self.prompts).view(self.reads.shape[1], -1)
        return (self.reads @ of_texts).view(-1, gradient.shape[1])


def grown(x: Float[Tensor, "n w"], rows: int) -> Float[Tensor, "S w"]:
    """The first rows, and zeros for the others."""
    return x if len(x) == rows else torch.cat([x, x.new_zeros(rows - len(x), x.shape[1])])

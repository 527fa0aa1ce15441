"""How parameters become prompts.

A parameterisation is a frozen value that turns params, a dict of tensors with a leading copies axis C, into
the distinct prompts a batch needs and says which prompt each text reads. It never knows which rule moves it.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from promptprior.notation import Float, Int, Params, Tensor
from promptprior.tasks.sampling.batch import Batch, Tokens


class Parameterisation(Protocol):
    """What an objective and an artifact need of a parameterisation."""

    @property
    def name(self) -> str:
        """Its name in artifacts."""
        ...

    @property
    def length(self) -> int:
        """L: tokens of each prompt it makes."""
        ...

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "P L D"], Int[Tensor, " X"]]:
        """The prompts a batch needs, and which one each of its texts reads."""
        ...


@runtime_checkable
class Penalised(Protocol):
    """What may be asked for a term beside the losses: a parameterisation with one of its own, and its objective."""

    def penalty(self, params: Params, batch: Batch) -> Float[Tensor, " C"] | None:
        """What training adds to each copy's mean loss on a batch, in nats; None for nothing. Exams never see it."""
        ...


@runtime_checkable
class Offsetting(Protocol):
    """A parameterisation whose prompts also add something to the embeddings of the texts that read them."""

    def offsets(self, params: Params) -> Float[Tensor, "P S D"]:
        """For each of its prompts, what is added to token 0, 1, … of a text."""
        ...


@runtime_checkable
class Diagnosable(Protocol):
    """A parameterisation that has something to say of itself."""

    def diagnose(self, params: Params, texts: Mapping[str, Sequence[Tokens]]) -> Mapping[str, object]:
        """What there is to know of one copy, given some texts of each task: plain JSON values by topic."""
        ...


@runtime_checkable
class Foldable(Protocol):
    """A parameterisation that is a plain prompt once it is trained: what made it can be dropped."""

    def fold(self, params: Params) -> Params:
        """The same prompts as the params of `Direct`."""
        ...

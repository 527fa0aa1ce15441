"""How parameters become prompts.

A parameterisation is a frozen value that turns params, a dict of tensors with a leading copies axis C, into
the distinct prompts a batch needs and says which prompt each text reads. It never knows which rule moves it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from promptprior.errors import ArtifactError, unknown_name
from promptprior.notation import Float, Int, Params, Tensor
from promptprior.tasks.batch import Batch


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


@dataclass(frozen=True)
class Direct:
    """One free matrix per copy: params["prompt"] is Float[C, L, D], and copy c's texts read prompt c."""

    length: int
    width: int
    name: str = "direct"

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "P L D"], Int[Tensor, " X"]]:
        """The matrices themselves."""
        return params["prompt"], batch.copy_index


PARAMETERISATIONS: Mapping[str, type[Direct]] = {"direct": Direct}


def parameterisation(name: str, settings: Mapping[str, object]) -> Parameterisation:
    """The parameterisation an artifact names. Raises ArtifactError for one this version does not know."""
    if name not in PARAMETERISATIONS:
        raise ArtifactError(unknown_name("parameterisation", name, PARAMETERISATIONS))
    return PARAMETERISATIONS[name](**settings)  # type: ignore[arg-type]

"""Direct: one free prompt per copy (Lester et al. 2021)."""

from dataclasses import dataclass

from promptprior.notation import Float, Int, Params, Tensor
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class Direct:
    """One free matrix per copy: params["prompt"] is Float[C, L, D], and copy c's texts read prompt c."""

    length: int
    width: int
    name: str = "direct"

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "P L D"], Int[Tensor, " X"]]:
        """The matrices themselves."""
        return params["prompt"], batch.copy_index

"""The parameterisation `direct`: one free prompt per copy (Lester et al. 2021)."""

from dataclasses import dataclass

from promptprior.notation import Float, Int, Params, Tensor
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class Direct:
    """params: "prompt" Float[C, L, D]. The texts of copy c read prompt c."""

    length: int
    width: int
    name: str = "direct"

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "C L D"], Int[Tensor, " X"]]:
        """The prompt of every copy."""
        return params["prompt"], batch.copy_index

"""The parameterisation `offset`: a short prompt, and a low-rank matrix added to the embeddings of the text behind it.

Shi and Lipani 2024 (DePT, arXiv 2309.05173).
"""

from dataclasses import dataclass

import torch

from promptprior.notation import Float, Int, Params, Tensor
from promptprior.parameterisations.initial import linear_init
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class Offset:
    """params: "prompt" Float[C, L, D], "a" Float[C, S, r] and "b" Float[C, r, D], with S = `positions`, r = `rank`.

    Texts of copy c read prompt c. Row t of a_c b_c is added to the embedding of their token t; later tokens get none.
    """

    length: int
    positions: int
    rank: int
    name: str = "offset"

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "C L D"], Int[Tensor, " X"]]:
        """The short prompt of every copy."""
        return params["prompt"], batch.copy_index

    def offsets(self, params: Params) -> Float[Tensor, "C S D"]:
        """What each copy adds to the embeddings of its texts."""
        return params["a"] @ params["b"]

    def init(self, prompt: Float[Tensor, "L D"], generator: torch.Generator) -> Params:
        """One copy that adds nothing yet: a uniform within 1 / sqrt(r), b zero, as in LoRA and the released DePT."""
        a = linear_init(self.positions, self.rank, fan_in=self.rank, generator=generator)
        return {"prompt": prompt[None], "a": a.to(prompt)[None], "b": prompt.new_zeros(1, self.rank, prompt.shape[1])}

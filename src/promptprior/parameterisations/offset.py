"""A short prompt, and a matrix of low rank added to the embeddings of whatever text reads it (DePT)."""

from dataclasses import dataclass

import torch

from promptprior.notation import Float, Int, Params, Tensor
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class Offset:
    """params: prompt Float[C, L, D], a Float[C, S, r] and b Float[C, r, D], for `positions` = S and `rank` = r.

    Texts of copy c read prompt c, and row t of a_c b_c is added to the embedding of their token t; none to tokens from
    S on.
    """

    length: int
    positions: int
    rank: int
    name: str = "offset"

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "P L D"], Int[Tensor, " X"]]:
        """The short prompts themselves."""
        return params["prompt"], batch.copy_index

    def offsets(self, params: Params) -> Float[Tensor, "P S D"]:
        """What each of the prompts adds to the texts that read it."""
        return params["a"] @ params["b"]

    def init(self, prompt: Float[Tensor, "L D"], generator: torch.Generator) -> Params:
        """One copy that adds nothing yet: a uniform within 1 / sqrt(r), b zero, as in LoRA and the released DePT."""
        a = (2 * torch.rand(self.positions, self.rank, generator=generator) - 1) / self.rank**0.5
        return {"prompt": prompt[None], "a": a.to(prompt)[None], "b": prompt.new_zeros(1, self.rank, prompt.shape[1])}

"""Texts with something added to their embeddings, position by position (DePT), through the one door all routes use.

Every text token of a batch gets an id of its own, behind the vocabulary, and the frozen model that goes with the batch
embeds such an id as the token's word plus its offset. Routes only ever embed ids, so none of them knows.
"""

from dataclasses import dataclass

import torch

from promptprior.backbone.frozen import Frozen
from promptprior.notation import Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class OffsetFrozen(Frozen):
    """A frozen model that knows the texts of one batch: the word and the row of `offsets` of each of their n tokens.

    Their ids start at `first_id`. The last row of `offsets` is zero: that of positions without an offset.
    """

    first_id: int
    words: Int[Tensor, " n"]
    rows: Int[Tensor, " n"]
    offsets: Float[Tensor, "m D"]

    def embed(self, ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        """Input embeddings; those of the batch's texts with their offsets."""
        ids = ids.to(self.device)
        token = ids - self.first_id
        is_text, token = token >= 0, token.clamp(min=0)
        words = super().embed(torch.where(is_text, self.words[token], ids))
        rows = torch.where(is_text, self.rows[token], len(self.offsets) - 1)
        return words + self.offsets.index_select(0, rows.flatten()).view(words.shape).to(words.dtype)

"""Texts with something added to their embeddings, position by position (DePT), through the one door all routes use.

Every text token of a batch gets an id of its own, behind the vocabulary, and the frozen model that goes with the batch
embeds such an id as the token's word plus its offset. Routes only ever embed ids, so none of them knows.
"""

from dataclasses import dataclass, replace

import torch

from promptprior.backbone.frozen import Frozen
from promptprior.notation import Float, Int, Tensor
from promptprior.tasks.sampling.batch import Batch


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


def offset_texts(frozen: Frozen, offsets: Float[Tensor, "P S D"], batch: Batch) -> tuple[Frozen, Batch]:
    """A frozen model and a batch that belong together: its texts with the offsets of the prompts they read.

    Token t of a text gets offset t; tokens from S on get none, nor do targets.
    """
    size, position = offsets.shape[1], torch.arange(batch.text_ids.shape[1])
    no_offset = offsets.shape[0] * size
    rows = torch.where(position < size, batch.prompt_index.cpu()[:, None] * size + position, no_offset)  # [X, T]
    table = torch.cat([offsets.flatten(0, 1), offsets.new_zeros(1, offsets.shape[2])])  # [P S + 1, D]
    first_id = frozen.model.get_input_embeddings().weight.shape[0]
    reader = OffsetFrozen(
        frozen.model,
        frozen.tokenizer,
        frozen.card,
        first_id=first_id,
        words=batch.text_ids.flatten().to(frozen.device),
        rows=rows.flatten().to(frozen.device),
        offsets=table.to(frozen.device),
    )
    return reader, replace(batch, text_ids=first_id + torch.arange(batch.text_ids.numel()).view_as(batch.text_ids))

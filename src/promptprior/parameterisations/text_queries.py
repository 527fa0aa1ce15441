"""What a text asks of a bank: its words, or what the first layers make of them, pooled over its own positions."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from promptprior.backbone import Backbone
from promptprior.backbone.early_layers import first_states
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Batch

Query = Literal["max", "mean"]
REMEMBERED = 20_000  # texts: 46 MB at width 576
AT_ONCE = 64  # texts that the first layers read together


@torch.no_grad()
def pooled(backbone: Backbone, batch: Batch, kind: Query, layers: int = 0) -> Float[Tensor, "X D"]:
    """Maximum or mean of each text's states over its own positions; zeros for an empty text."""
    states = first_states(backbone, batch, layers).to(backbone.frozen.prompt_dtype)
    lengths = batch.text_lengths.to(states.device)[:, None]
    pads = torch.arange(states.shape[1], device=states.device) >= lengths
    if kind == "mean":
        return states.masked_fill(pads[..., None], 0).sum(1) / lengths.clamp(min=1)
    if states.shape[1] == 0:
        return states.new_zeros(states.shape[0], states.shape[2])
    return states.masked_fill(pads[..., None], -torch.inf).amax(1).masked_fill(lengths == 0, 0)


@dataclass(frozen=True, eq=False)
class Asked:
    """Queries that took layers to compute, by the ids of their texts.

    The backbone is frozen, so a text's query never changes, and a text is met in every epoch, by every copy and at
    every look at dev: its layers run once. Word embeddings are cheaper to pool again than to look up.
    """

    known: dict[tuple[int, ...], Float[Tensor, " D"]] = field(default_factory=dict)

    def pooled(self, backbone: Backbone, batch: Batch, kind: Query, layers: int) -> Float[Tensor, "X D"]:
        """`pooled`, where each distinct text is computed once."""
        if layers == 0:
            return pooled(backbone, batch, kind)
        lengths = batch.text_lengths.tolist()
        texts = [tuple(ids[:n]) for ids, n in zip(batch.text_ids.tolist(), lengths, strict=True)]
        if len(self.known) + batch.texts > REMEMBERED:
            self.known.clear()
        new = [place for text, place in places(texts).items() if text not in self.known]
        for start in range(0, len(new), AT_ONCE):
            some = sorted(new[start : start + AT_ONCE])
            queries = pooled(backbone, batch.take(torch.tensor(some)), kind, layers)
            self.known.update(zip([texts[x] for x in some], queries, strict=True))
        return torch.stack([self.known[text] for text in texts])


def places(texts: list[tuple[int, ...]]) -> dict[tuple[int, ...], int]:
    """Each distinct text with one of its places."""
    return {text: place for place, text in enumerate(texts)}

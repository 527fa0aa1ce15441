"""What a text asks of a bank or of source prompts: its words, or early states of the model, pooled over positions.

Only the layers that are asked for run, so a text costs their share of a forward pass.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch

from promptprior.backbone.engine import Backbone
from promptprior.backbone.text_states import layer_states, layers_of
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Batch

Query = Literal["max", "mean"]
CACHED_TEXTS = 20_000  # 46 MB at width 576
TEXTS_AT_ONCE = 64  # read together by the early layers


@torch.no_grad()
def pooled(backbone: Backbone, batch: Batch, kind: Query, layers: int = 0) -> Float[Tensor, "X D"]:
    """Maximum or mean of each text's states over its own positions; zeros for an empty text. States are word embeddings
    (`layers` 0), or what that many early layers make of the text alone, before any final norm; their share of the
    model's layers is added to the backbone's meter."""
    states = backbone.frozen.embed(batch.text_ids)  # [X, T, D]
    if layers and states.shape[1]:
        reader, blocks = layers_of(backbone.frozen.model)
        backbone.meter.add(round(int(batch.text_lengths.sum()) * layers / len(blocks)))
        mask = torch.arange(states.shape[1]) < batch.text_lengths[:, None].cpu()
        with layer_states(backbone.frozen.model, {layers}, normed=False) as read:
            reader(inputs_embeds=states, attention_mask=mask.long().to(states.device))
        states = read[layers]
    states = states.to(backbone.frozen.prompt_dtype)
    lengths = batch.text_lengths.to(states.device)[:, None]
    pads = torch.arange(states.shape[1], device=states.device) >= lengths  # [X, T]
    if kind == "mean":
        return states.masked_fill(pads[..., None], 0).sum(1) / lengths.clamp(min=1)
    if states.shape[1] == 0:
        return states.new_zeros(states.shape[0], states.shape[2])
    return states.masked_fill(pads[..., None], -torch.inf).amax(1).masked_fill(lengths == 0, 0)


@dataclass(frozen=True, eq=False)
class QueryCache:
    """Queries that early layers computed, by the token ids of their texts.

    The backbone is frozen, so a text's query never changes, while the text is met again in every epoch, by every copy
    and in every evaluation. Word embeddings are not cached: they are cheaper to pool again than to look up.
    """

    known: dict[tuple[int, ...], Float[Tensor, " D"]] = field(default_factory=dict)

    def pooled(self, backbone: Backbone, batch: Batch, kind: Query, layers: int) -> Float[Tensor, "X D"]:
        """`pooled`, which computes each distinct text once."""
        if layers == 0:
            return pooled(backbone, batch, kind)
        lengths = batch.text_lengths.tolist()
        texts = [tuple(ids[:n]) for ids, n in zip(batch.text_ids.tolist(), lengths, strict=True)]
        if len(self.known) + batch.texts > CACHED_TEXTS:
            self.known.clear()
        last_place = {text: x for x, text in enumerate(texts)}
        new = [x for text, x in last_place.items() if text not in self.known]
        for start in range(0, len(new), TEXTS_AT_ONCE):
            chunk = sorted(new[start : start + TEXTS_AT_ONCE])
            queries = pooled(backbone, batch.take(torch.tensor(chunk)), kind, layers)
            self.known.update(zip([texts[x] for x in chunk], queries, strict=True))
        return torch.stack([self.known[text] for text in texts])

"""What the first layers of the model make of texts, before any prompt stands in front of them."""

from contextlib import suppress
from typing import Any

import torch
from torch.nn import Module

from promptprior.backbone.engine import Backbone
from promptprior.backbone.text_states import LayerReached, layers_of
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Batch


@torch.no_grad()
def first_states(backbone: Backbone, batch: Batch, layers: int) -> Float[Tensor, "X T D"]:
    """What each text by itself is after the first `layers` layers, before any final norm; 0: its word embeddings.
    Entries behind a text's end mean nothing. Its share of the model's layers is added to the backbone's meter."""
    words = backbone.frozen.embed(batch.text_ids)
    if layers == 0 or words.shape[1] == 0:
        return words
    reader, blocks = layers_of(backbone.frozen.model)
    backbone.meter.add(round(int(batch.text_lengths.sum()) * layers / len(blocks)))
    mask = torch.arange(words.shape[1]) < batch.text_lengths[:, None].cpu()
    states: list[Tensor] = []

    def leave(_: Module, __: Any, output: Any) -> None:  # the layers behind this one are not run
        states.append(output[0] if isinstance(output, tuple) else output)
        raise LayerReached

    handle = blocks[layers - 1].register_forward_hook(leave)
    try:
        with suppress(LayerReached):
            reader(inputs_embeds=words, attention_mask=mask.long().to(words.device))
    finally:
        handle.remove()
    return states[0]

"""States of texts behind prompts, pooled over each text's tokens: what heads read of the frozen model.

Only texts are read, no targets, and only up to the highest layer that is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import Module
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from promptprior.backbone.forward.causal import concatenated_states, gradient_checkpointing, packed_states
from promptprior.backbone.forward.dispatch import States, plain_route
from promptprior.backbone.forward.llama import llama_layer_states, llama_states
from promptprior.backbone.forward.seq2seq import encode
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.packing import plan, ragged_arange
from promptprior.backbone.key_values import Prompts, computed_tokens
from promptprior.errors import SpecError
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Batch

Pooling = Literal["mean", "last"]


class Site(NamedTuple):
    """A place where states are read. `layer` counts as `hidden_states` of transformers do: n is after block n, 0 what
    enters the first block, the last is after the final norm. Pooled is the mean over a text's tokens, or the last."""

    layer: int
    pooling: Pooling


class LayerReached(Exception):
    """Leaves a forward pass once the wanted layer has answered."""


def layers_of(model: PreTrainedModel) -> tuple[Module, list[Module]]:
    """What reads a text, the decoder or the encoder, and its layers in order."""
    reader = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    return reader, [module for module in reader.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def layer_states(
    model: PreTrainedModel, layers: set[int], normed: bool = True
) -> Iterator[dict[int, Float[Tensor, "*n W"]]]:
    """The states of these layers, filled while the model runs inside; it stops after the highest. `normed`: those
    behind the last block are taken after the final norm."""
    reader, blocks = layers_of(model)
    states: dict[int, Tensor] = {}
    highest = max(layers)

    def enter(number: int, _: Module, args: Any, options: Any) -> None:
        states[number] = args[0] if args else options["hidden_states"]
        if number == highest:
            raise LayerReached

    def leave_blocks(_: Module, __: Any, out: Any) -> None:
        states[len(blocks)] = out[0] if isinstance(out, tuple) else out
        if not normed:
            raise LayerReached

    def leave(_: Module, __: Any, out: Any) -> None:
        # OPT-350m projects its last states to another width: they would not stand beside the others
        if out.last_hidden_state.shape[-1] == states[len(blocks)].shape[-1]:
            states[len(blocks)] = out.last_hidden_state
        raise LayerReached

    handles = [
        blocks[n].register_forward_pre_hook(partial(enter, n), with_kwargs=True) for n in layers if n < len(blocks)
    ]
    if highest == len(blocks):
        handles.append(blocks[-1].register_forward_hook(leave_blocks))
        handles.append(reader.register_forward_hook(leave))
    try:
        with suppress(LayerReached):
            yield states
    finally:
        for handle in handles:
            handle.remove()


def pooled_states(
    frozen: Frozen, route: States, prompts: Prompts, batch: Batch, sites: Sequence[Site]
) -> Float[Tensor, "X S W"]:
    """Each text's states behind its prompt at every site, in the prompts' dtype; zeros for an empty text.

    `route` is the engine's, which says whether tokens are packed, what is kept for the backward pass and which prompt
    tokens are hidden. T5's blocks written by hand hand out no states: transformers' own take their place. Raises
    SpecError for a layer that the model does not have.
    """
    blocks = len(layers_of(frozen.model)[1])
    if wrong := [site.layer for site in sites if not 0 <= site.layer <= blocks]:
        raise SpecError(f"layer {wrong[0]} of {frozen.card.name}: expected 0 (embeddings) to {blocks} (the last block)")
    texts, length = batch.texts_only(), computed_tokens(prompts)  # a prefix is no token of the states
    states = states_by_layer(frozen, route, prompts, texts, {site.layer for site in sites})
    is_packed = not frozen.card.is_encoder_decoder and plain_route(route) is not concatenated_states

    lengths = texts.text_lengths.cpu()
    if is_packed:
        starts = plan(texts, length).predicts + 1 - lengths  # [X]; each text ends where its target would be predicted
    else:
        starts = torch.arange(texts.texts) * next(iter(states.values())).shape[1] + length
    tokens = (starts.repeat_interleave(lengths) + ragged_arange(lengths)).to(frozen.device)  # [n]
    text_of_token = torch.arange(texts.texts).repeat_interleave(lengths).to(frozen.device)  # [n]
    ends = (starts + lengths - 1).clamp(min=0).to(frozen.device)  # [X]
    count = lengths.to(frozen.device)[:, None]  # [X, 1]
    pooled = []
    for site in sites:
        flat = states[site.layer].reshape(-1, states[site.layer].shape[-1]).to(frozen.prompt_dtype)  # [N, D]
        if site.pooling == "mean":
            total = flat.new_zeros(texts.texts, flat.shape[1]).index_add(0, text_of_token, flat.index_select(0, tokens))
            pooled.append(total / count.clamp(min=1))
        else:
            pooled.append(flat.index_select(0, ends).masked_fill(count == 0, 0))
    return torch.stack(pooled, dim=1)


def states_by_layer(
    frozen: Frozen, route: States, prompts: Prompts, texts: Batch, layers: set[int]
) -> Mapping[int, Float[Tensor, "*n W"]]:
    """The states of these layers, as the route has them: packed [N, D], or in rows with padding [X, L + T, D]."""
    options: dict[str, Any] = dict(route.keywords) if isinstance(route, partial) else {}
    if plain_route(route) is llama_states:
        return llama_layer_states(frozen, prompts, texts, layers, **options)
    keep, hidden = options.get("keep", True), options.get("hidden")
    with layer_states(frozen.model, layers) as states:
        if frozen.card.is_encoder_decoder:
            with gradient_checkpointing(frozen.model, nullcontext, enabled=not keep):
                encode(frozen, prompts, texts, hidden)
        elif plain_route(route) is concatenated_states:
            concatenated_states(frozen, prompts, texts, keep, hidden)
        else:
            packed_states(frozen, prompts, texts, keep, hidden)
    return states

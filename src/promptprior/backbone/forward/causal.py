"""Causal models: the states that predict target tokens, by two exact routes.

`packed_states` runs every prompt and every text once, as one sequence without padding (layout.py). It never does more
work than concatenation, so it is the route wherever a family's attention goes through transformers' attention
interface. `concatenated_states` is the plain padded route for all other families.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.attention import packed_model
from promptprior.backbone.kernels.packing import plan, ragged_arange
from promptprior.notation import Float, Int, Tensor
from promptprior.tasks.sampling.batch import Batch


def packed_states(
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, keep: bool = True
) -> Float[Tensor, "V D"]:
    """The final state that predicts each target token, row after row."""
    layout = plan(batch, prompts.shape[1]).to(frozen.device)
    used = prompts.to(frozen.device)[layout.used_prompts].to(frozen.dtype)
    embeds = torch.cat([used.flatten(0, 1), frozen.embed(layout.token_ids)])[None]
    route = partial(packed_model, frozen.model, layout)
    with route(), kept_or_recomputed(frozen.model, keep, route):
        out = frozen.model.base_model(inputs_embeds=embeds, position_ids=layout.position_ids[None], use_cache=False)
    return out.last_hidden_state[0].index_select(0, layout.predicts)


def concatenated_states(
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, keep: bool = True
) -> Float[Tensor, "V D"]:
    """The same states from rows of prompt, text and target, right-padded to the longest."""
    length = prompts.shape[1]
    ids, lengths = joined_rows(batch)
    used = prompts[batch.prompt_index[batch.text_index]].to(frozen.device, frozen.dtype)
    embeds = torch.cat([used, frozen.embed(ids)], dim=1)
    mask = (torch.arange(embeds.shape[1]) < (length + lengths)[:, None]).long().to(frozen.device)
    with kept_or_recomputed(frozen.model, keep, nullcontext):
        out = frozen.model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
    row = torch.arange(batch.rows).repeat_interleave(batch.target_lengths)
    start = length + batch.text_lengths[batch.text_index] - 1
    place = start[row] + ragged_arange(batch.target_lengths)
    return out.last_hidden_state[row.to(frozen.device), place.to(frozen.device)]


@contextmanager
def kept_or_recomputed(
    model: PreTrainedModel, keep: bool, route: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Unless `keep`, every layer called inside keeps only its input and runs again, under `route`, when its gradient
    is asked for: by then this context has long been left."""
    layers = [] if keep else [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    again = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), route()))
    # transformers' own switch needs training mode, and that would turn dropout on
    with wrapped_forwards(layers, lambda forward: partial(again, forward)):
        yield


@contextmanager
def wrapped_forwards(
    modules: Sequence[torch.nn.Module], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Modules whose `forward` is wrapped inside; what others put in its place (accelerate does) is kept."""
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = wrap(module.forward)
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own


def joined_rows(batch: Batch) -> tuple[Int[Tensor, "R T"], Int[Tensor, " R"]]:
    """Text and target of each row as one right-padded sequence, and its length without the last token."""
    text_lengths = batch.text_lengths[batch.text_index]
    lengths = text_lengths + batch.target_lengths - 1
    ids = torch.zeros(batch.rows, max(int(lengths.max()), 1), dtype=torch.long)
    for row in range(batch.rows):
        text, answer = int(text_lengths[row]), int(batch.target_lengths[row]) - 1
        ids[row, :text] = batch.text_ids[int(batch.text_index[row]), :text]
        ids[row, text : text + answer] = batch.target_ids[row, :answer]
    return ids, lengths

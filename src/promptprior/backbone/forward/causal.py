"""Causal models: the states that predict target tokens, by two exact routes.

`packed_states` runs every prompt and every text once, as one sequence without padding (packing.py). It never does more
work than concatenation, so it is the route wherever a family's attention goes through transformers' attention
interface. `concatenated_states` is the plain padded route for all other families, and for hidden prompt tokens.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.attention import NO_PREFIX, LayerPrefix
from promptprior.backbone.kernels.packed_model import packed_model
from promptprior.backbone.kernels.packing import Layout, on_device, plan, ragged_arange
from promptprior.backbone.key_values import KeyValues, Prompts, cache_argument, filled_cache
from promptprior.errors import SpecError
from promptprior.notation import Bool, Float, Tensor
from promptprior.tasks.sampling.batch import Batch


def packed_states(
    frozen: Frozen,
    prompts: Prompts,
    batch: Batch,
    keep: bool = True,
    hidden: Bool[Tensor, "P L"] | None = None,
) -> Float[Tensor, "V D"]:
    """The final state that predicts each target token, row after row. No text attends to the positions of its prefix
    that are `hidden`; tokens of prompts cannot be hidden here."""
    layout, tokens, words, prefixes = packed_inputs(frozen, prompts, batch, hidden)
    packed = partial(packed_model, frozen.model, layout, prefixes)
    with packed(), gradient_checkpointing(frozen.model, packed, enabled=not keep):
        out = frozen.model.base_model(
            inputs_embeds=torch.cat([tokens, words])[None], position_ids=layout.position_ids[None], use_cache=False
        )
    return out.last_hidden_state[0].index_select(0, layout.predicts)


def packed_inputs(
    frozen: Frozen, prompts: Prompts, batch: Batch, hidden: Bool[Tensor, "P L"] | None = None
) -> tuple[Layout, Float[Tensor, "PL D"], Float[Tensor, "n D"], Mapping[int, LayerPrefix]]:
    """A packed batch: its layout, the tokens of its prompts, the embeddings of its words, and what stands before both
    in each layer. A prompt has either tokens or, as a prefix, keys and values."""
    if isinstance(prompts, KeyValues):
        shown = None if hidden is None else hidden.cpu()[batch.prompt_index.cpu()]  # [X, L], of each text
        read = batch.reading(prompts.prefix_index(batch.prompt_index))
        layout = plan(read, 0, prefix=prompts.length, hidden=shown)
        prefixes = prompts.by_layer(layout.used_prompts, frozen)
        layout = on_device(layout, frozen.device)
        words = frozen.embed(layout.token_ids)
        return layout, words[:0], words, prefixes
    layout = on_device(plan(batch, prompts.shape[1]), frozen.device)
    used = prompts.to(frozen.device)[layout.used_prompts].to(frozen.dtype)
    return layout, used.flatten(0, 1), frozen.embed(layout.token_ids), NO_PREFIX


def concatenated_states(
    frozen: Frozen,
    prompts: Prompts,
    batch: Batch,
    keep: bool = True,
    hidden: Bool[Tensor, "P L"] | None = None,
) -> Float[Tensor, "V D"]:
    """The same states from rows of prompt, text and target, right-padded to the longest. No position attends to the
    prompt tokens that are `hidden`. Raises SpecError where the model cannot hide them.

    A prefix goes through the model's own cache, which cannot be filled twice, so that all is kept (`keep` is for
    prompts of tokens).
    """
    is_prefix = isinstance(prompts, KeyValues)
    length, text = prompts.length if isinstance(prompts, KeyValues) else prompts.shape[1], batch.text_index
    text_lengths = batch.text_lengths[text]  # [R]
    lengths = text_lengths + batch.target_lengths - 1  # the last token of a target is predicted, never read
    ids = torch.zeros(batch.rows, max(int(lengths.max()), 1), dtype=torch.long)
    for row in range(batch.rows):
        text_end, end = int(text_lengths[row]), int(lengths[row])
        ids[row, :text_end] = batch.text_ids[int(text[row]), :text_end]
        ids[row, text_end:end] = batch.target_ids[row, : end - text_end]
    prompt_of_row = batch.prompt_index[text]
    model, embeds = frozen.model.base_model, frozen.embed(ids)
    options: dict[str, Any] = {"use_cache": is_prefix}
    if isinstance(prompts, KeyValues):
        options[cache_argument(model)] = filled_cache(prompts, prompts.prefix_index(prompt_of_row), frozen)
        first = 0  # of the model's own states, the one of a text's first token
    else:
        used = prompts[prompt_of_row].to(frozen.device, frozen.dtype)
        embeds, first = torch.cat([used, embeds], dim=1), length  # [R, S, D]
    mask = torch.arange(length + ids.shape[1]) < (length + lengths)[:, None]
    if hidden is not None:
        check_hiding(frozen)
        mask[:, :length] &= ~hidden.cpu()[prompt_of_row]
        # Said outright: some families would count positions over the visible tokens alone
        at = torch.arange(length - first, length + ids.shape[1], device=frozen.device)
        options["position_ids"] = at.expand(batch.rows, -1)
    mask = mask.long().to(frozen.device)
    with gradient_checkpointing(frozen.model, nullcontext, enabled=not keep and not is_prefix):
        out = model(inputs_embeds=embeds, attention_mask=mask, **options)
    row_of_token = torch.arange(batch.rows).repeat_interleave(batch.target_lengths)  # [V]
    position = (first + text_lengths - 1)[row_of_token] + ragged_arange(batch.target_lengths)
    return out.last_hidden_state[row_of_token.to(frozen.device), position.to(frozen.device)]


def check_hiding(frozen: Frozen) -> None:
    """Raise SpecError for a causal model whose positions would move if tokens were hidden by an attention mask."""
    if "position_ids" not in inspect.signature(frozen.model.base_model.forward).parameters:
        raise SpecError(
            f"hidden prompt tokens: {frozen.card.name} ({frozen.card.architecture}) takes no position_ids and counts "
            "positions over visible tokens, so hiding some would move all others; use another backbone"
        )


@contextmanager
def gradient_checkpointing(
    model: PreTrainedModel, context: Callable[[], AbstractContextManager[None]], enabled: bool
) -> Iterator[None]:
    """Where enabled, every layer called inside keeps only its input and runs again when its gradient is asked for,
    under `context`: by then this one has long been left."""
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if enabled else []
    recompute = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), context()))
    # transformers' own switch needs training mode, and that would turn dropout on
    with wrapped_forwards(layers, lambda forward: partial(recompute, forward)):
        yield


@contextmanager
def wrapped_forwards(
    modules: Sequence[torch.nn.Module], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Modules whose `forward` is wrapped inside; what others put in its place (accelerate does) is restored."""
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

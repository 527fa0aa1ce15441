"""Free text after a soft prompt.

Greedy text of causal models is our own loop. The `generate` of transformers sends a slice with strides through the
head, which on a CPU in bfloat16 copies the whole head once per row and step (6 GB and minutes for a hundred rows of
SmolLM2). Beams, and encoder-decoders without a prefix, go through the model's own `generate`.
"""

from collections.abc import Collection, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from promptprior.backbone.forward.causal import check_hiding
from promptprior.backbone.forward.seq2seq import encode
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.lm_head import logits
from promptprior.backbone.key_values import KeyValues, Prompts, cache_argument, filled_cache
from promptprior.errors import SpecError
from promptprior.notation import Bool, Float, Int, Tensor
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class GenerationOptions:
    """How much text, by how many beams. With `first_line` greedy text of causal models ends where its first line that
    is not blank does."""

    max_new_tokens: int
    beams: int = 1
    first_line: bool = False


Steps = Generator[dict[int, list[int]], Collection[int] | None, None]
"""New token ids of texts by their places in the batch, step by step. It may be sent the places of texts that need no
more; a text's last id is one of `Frozen.end_ids` where the model ended it."""


def token_steps(
    frozen: Frozen,
    prompts: Prompts,
    batch: Batch,
    options: GenerationOptions,
    hidden: Bool[Tensor, "P L"] | None = None,
) -> Steps:
    """Token ids [n] after each of the batch's texts, with its prompt in front, as they are made; nothing attends to
    prompt tokens (or positions of a prefix) that are `hidden`.

    What goes through the model's own `generate` comes in one step. Raises SpecError where the model cannot hide tokens,
    and for beams after a prefix.
    """
    if isinstance(prompts, KeyValues):
        if options.beams > 1:
            raise SpecError("beam search after a prefix of keys and values: generate with one beam")
        # Pads stand between a prefix and a text, where a sliding window would count them: such models read texts of
        # one length at a time
        config = frozen.model.config.get_text_config(decoder=True)
        lengths = batch.text_lengths.cpu() if getattr(config, "sliding_window", None) else torch.zeros(batch.texts)
        for length in lengths.unique():
            texts = (lengths == length).nonzero().flatten()
            steps = _greedy(frozen, prompts, batch.take(texts), options.max_new_tokens, hidden)
            yield from renumbered(steps, texts.tolist())
    elif frozen.card.is_encoder_decoder or options.beams > 1:
        if frozen.card.is_encoder_decoder:
            encoded, mask = encode(frozen, prompts, batch, hidden)
            inputs = {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded), "attention_mask": mask}
        elif hidden is not None:
            raise SpecError("hidden prompt tokens: beam search would move positions; generate with one beam")
        else:
            embeds, mask, _ = left_pad(frozen, prompts, batch)
            inputs = {"inputs_embeds": embeds, "attention_mask": mask}
        pad, end = frozen.tokenizer.pad_token_id, frozen.tokenizer.eos_token_id
        ids = frozen.model.generate(
            **inputs,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.beams,
            do_sample=False,
            pad_token_id=end if pad is None else pad,
        )
        yield dict(enumerate(ids.tolist()))
    else:
        yield from _greedy(frozen, prompts, batch, options.max_new_tokens, hidden)


def renumbered(steps: Steps, places: Sequence[int]) -> Steps:
    """The same steps, where text x is called places[x]."""
    ended: list[int] | None = None  # nothing can be sent to steps that have not begun
    with suppress(StopIteration):
        while True:
            new = steps.send(ended)
            ended = [places.index(x) for x in (yield {places[x]: ids for x, ids in new.items()}) or ()]


def generate_texts(
    frozen: Frozen,
    prompts: Prompts,
    batch: Batch,
    options: GenerationOptions,
    hidden: Bool[Tensor, "P L"] | None = None,
) -> list[str]:
    """The text of `token_steps` after each of the batch's texts. Raises as it does."""
    steps = token_steps(frozen, prompts, batch, options, hidden)
    ended: list[int] | None = None
    ids: list[list[int]] = [[] for _ in range(batch.texts)]
    with suppress(StopIteration):
        while True:
            new = steps.send(ended)
            for x, more in new.items():
                ids[x] += more
            ended = [x for x in new if options.first_line and "\n" in frozen.decode(ids[x]).lstrip()]
    return [frozen.decode(row) for row in ids]


def _greedy(
    frozen: Frozen, prompts: Prompts, batch: Batch, max_new_tokens: int, hidden: Bool[Tensor, "P L"] | None
) -> Steps:
    """The most likely token, again and again; rows leave the batch when they end. An encoder-decoder's decoder starts
    behind its prefix."""
    is_encoder_decoder = frozen.card.is_encoder_decoder
    decoder = frozen.model.get_decoder() if is_encoder_decoder else frozen.model.base_model
    cache: Cache = DynamicCache(config=frozen.model.config)
    beside: dict[str, Tensor] = {}  # what every step reads besides ids and mask, row by row
    if is_encoder_decoder:
        encoded, encoder_mask = encode(frozen, prompts, batch)
        start = torch.full((batch.texts, 1), frozen.model.config.decoder_start_token_id, device=frozen.device)
        inputs, mask = {"input_ids": start}, torch.ones_like(start)
        beside = {"encoder_hidden_states": encoded, "encoder_attention_mask": encoder_mask}
    else:
        if isinstance(prompts, KeyValues):
            read = batch.reading(torch.zeros_like(batch.prompt_index))
            embeds, mask, positions = left_pad(frozen, frozen.embed(batch.text_ids[:1, :0]), read)
        else:
            embeds, mask, positions = left_pad(frozen, prompts, batch, hidden)
        inputs, beside = {"inputs_embeds": embeds}, {"position_ids": positions}
    if isinstance(prompts, KeyValues):
        cache = filled_cache(prompts, prompts.prefix_index(batch.prompt_index), frozen)
        seen = mask.new_ones(batch.texts, prompts.length)
        if hidden is not None:
            seen = (~hidden.cpu()[batch.prompt_index.cpu()]).to(mask)
        mask = torch.cat([seen, mask], dim=1)
        if not is_encoder_decoder:
            beside["position_ids"] = beside["position_ids"] + prompts.length
    cache_name, end_ids, alive = cache_argument(decoder), frozen.end_ids, list(range(batch.texts))
    for _ in range(max_new_tokens):
        out = decoder(**inputs, **beside, attention_mask=mask, **{cache_name: cache}, use_cache=True)
        ids = logits(frozen.model, out.last_hidden_state[:, -1]).argmax(-1)  # [rows alive]
        tokens = dict(zip(alive, ids.tolist(), strict=True))
        ended = {*((yield {row: [token] for row, token in tokens.items()}) or ())}
        going_on = [p for p, (row, token) in enumerate(tokens.items()) if token not in end_ids and row not in ended]
        if not going_on:
            break
        keep = torch.tensor(going_on, device=mask.device)
        if len(going_on) < len(alive):
            cache.batch_select_indices(keep)
            alive = [alive[place] for place in going_on]
        mask = torch.cat([mask[keep], mask.new_ones(len(keep), 1)], dim=1)
        beside = {name: value[keep] for name, value in beside.items()}
        if not is_encoder_decoder:
            beside["position_ids"] = beside["position_ids"][:, -1:] + 1
        inputs = {"input_ids": ids[keep, None]}


def left_pad(
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, hidden: Bool[Tensor, "P L"] | None = None
) -> tuple[Float[Tensor, "X S D"], Int[Tensor, "X S"], Int[Tensor, "X S"]]:
    """Embeddings, attention mask and positions of rows of prompt and text that end together.

    Pads between prompt and text would change positions (peft issue 1093), so they go in front of both. Prompt tokens
    that are `hidden` keep their positions and leave the mask.
    """
    length, embeds = prompts.shape[1], frozen.embed(batch.text_ids)
    used = prompts.to(frozen.device)[batch.prompt_index.to(frozen.device)].to(frozen.dtype)
    rows = [
        torch.cat([prompt, text[: int(n)]]) for prompt, text, n in zip(used, embeds, batch.text_lengths, strict=True)
    ]
    widest = max(map(len, rows))
    padded = torch.stack([torch.cat([r.new_zeros(widest - len(r), r.shape[1]), r]) for r in rows])  # [X, S, D]
    starts = torch.tensor([widest - len(r) for r in rows])
    mask = torch.arange(widest) >= starts[:, None]  # [X, S]
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    if hidden is not None:
        check_hiding(frozen)
        columns = starts[:, None] + torch.arange(length)  # [X, L]
        mask = mask.scatter(1, columns, ~hidden.cpu()[batch.prompt_index.cpu()])
    return padded, mask.long().to(frozen.device), positions.to(frozen.device)

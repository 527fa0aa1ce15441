"""Prefix tuning: keys and values of N tokens in front of every layer (Li & Liang 2021, arXiv 2101.00190).

Ours: no network makes the prefix; it starts from the keys and values of prompt tuning's start, whose losses it has.
Limits: decoders whose layers all have keys of one shape, and that take `past_key_values`.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone
from promptprior.errors import SpecError
from promptprior.methods import AdaptationInit, Episode, Recipe, RunContext, fact, option
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class PrefixAnswers:
    """What the model answers after keys and values; params are "keys" and "values" Float[layers, heads, N, d]."""

    backbone: Backbone
    length: int

    def states(self, params: Mapping[str, Tensor], rows: Sequence[Tensor]) -> Float[Tensor, "R S D"]:
        """The last states of rows of token ids, padded on the right; the rows see the prefix and themselves."""
        frozen = self.backbone.frozen
        ids, ones = pad_sequence(list(rows), batch_first=True), [torch.ones(self.length + len(row)) for row in rows]
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(params["keys"], params["values"], strict=True)):
            each = [t.to(frozen.dtype).expand(len(rows), -1, -1, -1) for t in (keys, values)]  # [R, heads, N, d]
            cache.update(*each, layer)
        past, inputs = cache_name(frozen.model), {"input_ids": ids.to(frozen.device), "use_cache": True}
        mask = pad_sequence(ones, batch_first=True).long().to(frozen.device)  # [R, N + S]
        return frozen.model.base_model(**inputs, attention_mask=mask, **{past: cache}).last_hidden_state

    def losses(self, params: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, " R"]:
        losses = []
        for piece in self.backbone.split(batch.reading(torch.zeros_like(batch.prompt_index)), self.length):
            self.backbone.meter.count(piece, self.length)
            texts = [piece.text_ids[x, : piece.text_lengths[x]] for x in piece.text_index]
            targets = [ids[:n] for ids, n in zip(piece.target_ids, piece.target_lengths, strict=True)]
            rows = list(zip(texts, targets, strict=True))
            states = self.states(params, [torch.cat(row) for row in rows])  # [R, S, D]
            ends = [len(text) - 1 for text in texts]  # the place that predicts the target's first token
            predicting = [
                states[r, end : end + len(row[1])] for r, (end, row) in enumerate(zip(ends, rows, strict=True))
            ]
            losses.append(self.backbone.state_losses(torch.cat(predicting), piece))
        return torch.cat(losses)

    @torch.no_grad()
    def generate(self, params: Mapping[str, Tensor], batch: Batch, max_new_tokens: int) -> list[str]:
        """The most likely token again and again, text by text; everything is read again for each: slow and simple."""
        frozen, texts = self.backbone.frozen, []
        self.backbone.meter.count(batch, self.length)
        for ids, length in zip(batch.text_ids, batch.text_lengths, strict=True):
            row, text = ids[:length], ""
            while len(row) < length + max_new_tokens and "\n" not in text.lstrip():
                state = self.states(params, [row])[:, -1]  # [1, D]
                token = frozen.model.get_output_embeddings()(state).argmax(-1).cpu()
                if int(token) == frozen.tokenizer.eos_token_id:
                    break
                row = torch.cat([row, token])
                text = frozen.decode(row[length:].tolist())
            texts.append(text)
        return texts


def cache_name(model: Any) -> str:
    """What the model calls the cache: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(model.base_model.forward).parameters else "past_key_values"


@dataclass(frozen=True)
class KvPrefix:
    """params: "keys" and "values" Float[C, layers, heads, N, d]."""

    tokens: int
    name: str = "kv_prefix"
    holds: ClassVar[str] = "a prefix of keys and values"

    def answers(self, backbone: Backbone) -> PrefixAnswers:
        """Raises SpecError for encoder-decoders."""
        if backbone.card.is_encoder_decoder:
            raise SpecError(f"kv_prefix needs a decoder, and {backbone.card.name} is an encoder-decoder (--backbone)")
        return PrefixAnswers(backbone, self.tokens)


@dataclass(frozen=True)
class PrefixTuning(Recipe):
    """A prefix for every target."""

    name: str = fact("outside_prefix")
    rate: float = option(0.03, "absolute learning rate where prompts have 1 in embedding scales", above=0)

    @torch.no_grad()
    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """The keys and values of prompt tuning's start. (This one pass over N tokens is not part of the cost.)"""
        form, frozen = KvPrefix(context.settings.length), context.backbone.frozen
        form.answers(context.backbone)  # raises now where the model cannot
        prompts = context.episode_prompts(episodes)["prompt"].to(frozen.dtype)  # [E, N, D]
        cache = DynamicCache()
        frozen.model.base_model(inputs_embeds=prompts, use_cache=True, **{cache_name(frozen.model): cache})
        params = {
            name: torch.stack([getattr(layer, name) for layer in cache.layers], dim=1).to(frozen.prompt_dtype)
            for name in ("keys", "values")
        }
        rates = tuple(self.rate * rate for rate in context.settings.target.learning_rates)
        return AdaptationInit(form, params, learning_rates=rates)


PREFIX_TUNING = PrefixTuning()

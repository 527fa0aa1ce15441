"""Keys and values of every layer in front of a text, in place of prompt tokens: a prefix (Li & Liang 2021).

They are used as PEFT uses them: as what the model's cache holds of L positions before the text, whose own positions
start at L. Keys are taken as they are, so rotary positions are in them already. An encoder-decoder has them in front of
the decoder's self-attention. No token of a prefix runs through the model.
"""

import inspect
from dataclasses import dataclass

import torch
from torch.nn import Module
from transformers import Cache, DynamicCache, EncoderDecoderCache

from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.attention import LayerPrefix
from promptprior.errors import SpecError
from promptprior.notation import Float, Int, Tensor

TOKENS_AT_ONCE = 2048  # of prompts that are read together for what the model caches of them


@dataclass(frozen=True, eq=False)
class KeyValues:
    """K prefixes. Prompt p is prefix `prefix_of[p]` (None: prefix p), so that many prompts, each of which hides other
    positions, share one. `layers` are those of the model that have a prefix, () for all."""

    keys: Float[Tensor, "K layers H L d"]
    values: Float[Tensor, "K layers H L d"]
    layers: tuple[int, ...] = ()
    prefix_of: Int[Tensor, " P"] | None = None

    @property
    def length(self) -> int:
        """L, the positions that stand before the text."""
        return self.keys.shape[3]

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient is asked for."""
        return self.keys.requires_grad or self.values.requires_grad

    def prefix_index(self, prompt_index: Int[Tensor, " X"]) -> Int[Tensor, " X"]:
        """The prefix that each text reads, on the CPU, given its prompt."""
        index = prompt_index.cpu()
        return index if self.prefix_of is None else self.prefix_of.cpu()[index]

    def by_layer(self, prefixes: Int[Tensor, " prefixes"], frozen: Frozen) -> dict[int, LayerPrefix]:
        """Some prefixes, layer by layer, where and in what the model computes. Raises SpecError for another number of
        layers than there are."""
        depth = layer_count(frozen)
        numbers = self.layers or tuple(range(depth))
        if len(numbers) != self.keys.shape[1] or max(numbers) >= depth:
            raise SpecError(
                f"a prefix of {self.keys.shape[1]} layers for layers {list(numbers)} of {frozen.card.name}, which has "
                f"{depth}: name the backbone it was trained on (--backbone)"
            )
        whole = self.keys.shape[0] == len(prefixes) and bool((prefixes == torch.arange(len(prefixes))).all())
        chosen = [x if whole else x.index_select(0, prefixes.to(x.device)) for x in (self.keys, self.values)]
        keys, values = (x.to(frozen.device, frozen.dtype).permute(1, 2, 0, 3, 4).unbind(0) for x in chosen)
        return dict(zip(numbers, zip(keys, values, strict=True), strict=True))


Prompts = Float[Tensor, "P L D"] | KeyValues
"""What texts read: P prompts of tokens that run through the model, or P prefixes, which do not."""


def computed_tokens(prompts: Prompts) -> int:
    """How many tokens of each prompt run through the model."""
    return 0 if isinstance(prompts, KeyValues) else prompts.shape[1]


def layer_count(frozen: Frozen) -> int:
    """How many layers have a prefix: those of a decoder."""
    config = frozen.model.config
    named = (getattr(config, name, None) for name in ("num_decoder_layers", "decoder_layers"))
    in_decoder = next((n for n in named if n is not None), None) if frozen.card.is_encoder_decoder else None
    return in_decoder if in_decoder is not None else config.get_text_config().num_hidden_layers


def cache_argument(module: Module) -> str:
    """What a model or decoder calls its cache: transformers 5.24 renamed it, and the old name goes in 5.40."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def filled_cache(prompts: KeyValues, prefix_of_row: Int[Tensor, " R"], frozen: Frozen) -> Cache:
    """transformers' own cache with the prefix of each row. Raises SpecError where only some layers have one: the masks
    that transformers makes are the same for all."""
    if len(prompts.layers) not in (0, layer_count(frozen)):
        raise SpecError(
            f"a prefix of some layers only (--options.layers): {frozen.card.name} ({frozen.card.architecture}) has no "
            "route that masks it layer by layer; give all layers a prefix"
        )
    cache = DynamicCache()
    used, place = torch.unique(prefix_of_row.cpu(), return_inverse=True)
    for layer, pair in sorted(prompts.by_layer(used, frozen).items()):
        keys, values = (x.index_select(1, place.to(x.device)).transpose(0, 1) for x in pair)  # [R, H, L, d]
        cache.update(keys, values, layer)
    return EncoderDecoderCache(cache, DynamicCache()) if frozen.card.is_encoder_decoder else cache


@torch.no_grad()
def cached_key_values(frozen: Frozen, embeds: Float[Tensor, "P L D"]) -> KeyValues:
    """What the model caches of prompts: the prefixes that answer exactly as these prompts do, in the prompts' dtype.

    Some prompts at a time, so that many or long ones fit. An encoder-decoder reads each in the encoder and in the
    decoder. Raises SpecError for models whose layers cache keys of different shapes, or nothing.
    """
    prefixes: list[tuple[Tensor, Tensor]] = []
    decoder = frozen.model.get_decoder() if frozen.card.is_encoder_decoder else frozen.model.base_model
    length = embeds.shape[1]
    for some in embeds.to(frozen.device, frozen.dtype).split(max(1, TOKENS_AT_ONCE // max(1, length))):
        cache, options = DynamicCache(), {}
        if frozen.card.is_encoder_decoder:
            options["encoder_hidden_states"] = frozen.model.get_encoder()(inputs_embeds=some).last_hidden_state
        holder = EncoderDecoderCache(cache, DynamicCache()) if options else cache
        decoder(inputs_embeds=some, use_cache=True, **{cache_argument(decoder): holder}, **options)
        layers = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
        shapes = {() if x is None else tuple(x.shape) for pair in layers for x in pair}
        expected = len(layers) == layer_count(frozen) and len(shapes) == 1 and {s[2:3] for s in shapes} == {(length,)}
        if not expected:
            raise SpecError(
                f"form prefix (--form): {frozen.card.name} ({frozen.card.architecture}) caches keys and values of "
                f"{len(shapes)} shapes in {len(layers)} layers; expected one shape in every layer: use --form prompt"
            )
        keys, values = (torch.stack(each, dim=1) for each in zip(*layers, strict=True))  # [some, layers, H, L, d]
        prefixes.append((keys.to(frozen.prompt_dtype), values.to(frozen.prompt_dtype)))
    keys, values = (torch.cat(each) for each in zip(*prefixes, strict=True))
    return KeyValues(keys, values)

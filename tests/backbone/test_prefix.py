"""Prefixes of keys and values: the slow reference, and PEFT's own prefix tuning, in losses and gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import peft
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from promptprior.backbone import Backbone
from promptprior.backbone.engine import Meter
from promptprior.backbone.forward.causal import concatenated_states, packed_states
from promptprior.backbone.forward.reference import reference_losses
from promptprior.backbone.forward.seq2seq import encoder_decoder_states
from promptprior.backbone.key_values import KeyValues, cache_argument, cached_key_values, computed_tokens, filled_cache
from promptprior.errors import SpecError
from promptprior.notation import Tensor
from promptprior.tasks.sampling.batch import Batch

from .test_engine import random_batch, random_prompts
from .tiny import FAMILIES, TrueFloat64, tiny

LENGTH, PREFIXES = 5, 3
LOSS, GRADIENT = 1e-10, 1e-7


@pytest.fixture(autouse=True)
def true_float64() -> Iterator[None]:
    with TrueFloat64():
        yield


def random_prefixes(backbone: Backbone, prefixes: int = PREFIXES, length: int = LENGTH) -> KeyValues:
    """What the model caches of random prompts, with noise, so that nothing of it could be a real token's."""
    g = torch.Generator().manual_seed(3)
    drawn = torch.randn(prefixes, length, backbone.width, generator=g, dtype=backbone.frozen.dtype) * backbone.scale
    made = cached_key_values(backbone.frozen, drawn)
    noisy = (x + 0.3 * x.std() * torch.randn(x.shape, generator=g, dtype=x.dtype) for x in (made.keys, made.values))
    return KeyValues(*(x.requires_grad_() for x in noisy))


def gradients(losses: Tensor, prefix: KeyValues, weights: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(losses @ weights, (prefix.keys, prefix.values))])


def row_weights(batch: Batch) -> Tensor:
    return torch.linspace(0.5, 2, batch.rows, dtype=torch.float64)


def assert_equal(found: Tensor, expected: Tensor, prefix: KeyValues, batch: Batch) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=LOSS)
    ours, theirs = (gradients(losses, prefix, row_weights(batch)) for losses in (found, expected))
    assert (ours - theirs).norm() <= GRADIENT * theirs.norm()
    assert theirs.norm() > 0


@pytest.mark.parametrize("prefixes", [1, 3, 6])
@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_equal_the_reference(family: str, choices: int, prefixes: int) -> None:
    backbone = tiny(family)
    batch, prefix = random_batch(6, choices, prefixes), random_prefixes(backbone, prefixes)
    assert_equal(backbone.losses(prefix, batch), reference_losses(backbone.frozen, prefix, batch), prefix, batch)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma3", "t5"])
def test_the_plain_routes_agree(family: str) -> None:
    backbone, batch = tiny(family), random_batch(6, 2, PREFIXES)
    prefix = random_prefixes(backbone)
    plain = encoder_decoder_states if backbone.card.is_encoder_decoder else concatenated_states
    for route in (plain, plain if backbone.card.is_encoder_decoder else packed_states):
        found = replace(backbone, states=route).losses(prefix, batch)
        assert_equal(found, reference_losses(backbone.frozen, prefix, batch), prefix, batch)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_recomputation_gives_the_same_gradient(family: str) -> None:
    """In float32, since the casts that float64 undoes are back in the thread that recomputes."""
    backbone, batch = tiny(family, torch.float32), random_batch(6, 2, PREFIXES)
    prefix = random_prefixes(backbone)
    plain = encoder_decoder_states if backbone.card.is_encoder_decoder else concatenated_states
    weights = torch.linspace(0.5, 2, batch.rows)
    expected = gradients(backbone.losses(prefix, batch), prefix, weights)
    for route in (backbone.states, plain, *([] if backbone.card.is_encoder_decoder else [packed_states])):
        found = gradients(replace(backbone, states=partial(route, keep=False)).losses(prefix, batch), prefix, weights)
        assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_many_prompts_hide_parts_of_one_prefix(family: str, choices: int) -> None:
    backbone, batch = tiny(family), random_batch(6, choices, PREFIXES)
    prefix = random_prefixes(backbone, 2)
    batch = batch.reading(torch.arange(6))  # a prompt for each text, two prefixes among them
    shared = replace(prefix, prefix_of=torch.tensor([0, 1, 1, 0, 1, 0]))
    hidden = torch.rand(6, LENGTH, generator=torch.Generator().manual_seed(2)) < 0.4
    hidden[0], hidden[1] = False, True
    if family == "bloom":
        with pytest.raises(SpecError, match="takes no position_ids"):
            backbone.losses(shared, batch, hidden)
        return
    found = backbone.losses(shared, batch, hidden)
    assert_equal(found, reference_losses(backbone.frozen, shared, batch, hidden), prefix, batch)
    assert (found - backbone.losses(shared, batch)).abs().max() > 1e-4
    spread = KeyValues(*(x[shared.prefix_of].detach() for x in (prefix.keys, prefix.values)))
    torch.testing.assert_close(found, backbone.losses(spread, batch, hidden), rtol=0, atol=LOSS)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("t5", "t5_gated", "bart")])
def test_the_cache_of_a_prompt_answers_as_the_prompt(family: str) -> None:
    backbone, batch = tiny(family), random_batch(6, 2, PREFIXES)
    prompts = random_prompts(backbone, PREFIXES, LENGTH).detach()
    prefix = cached_key_values(backbone.frozen, prompts)
    torch.testing.assert_close(backbone.losses(prefix, batch), backbone.losses(prompts, batch), rtol=0, atol=LOSS)
    texts = backbone.generate(prefix, batch, 6)
    assert texts == backbone.generate(prompts, batch, 6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3", "t5", "bart"])
def test_greedy_text_is_the_best_token_again_and_again(family: str) -> None:
    backbone, steps = tiny(family), 6
    frozen, batch, prefix = backbone.frozen, random_batch(5, 1, PREFIXES), random_prefixes(backbone)
    hidden = torch.rand(PREFIXES, LENGTH, generator=torch.Generator().manual_seed(5)) < 0.3
    for mask in (None, hidden):
        texts = backbone.generate(prefix, batch, steps, hidden=mask)
        for x in range(batch.texts):
            ids: list[int] = []
            text = batch.text_ids[x, : batch.text_lengths[x]]
            p = batch.prompt_index[x : x + 1]
            while len(ids) < steps and ids[-1:] != [1]:  # by transformers' own cache, filled anew for each token
                cache = {cache_argument(frozen.model): filled_cache(prefix, p, frozen)}
                if backbone.card.is_encoder_decoder:
                    start = frozen.model.config.decoder_start_token_id
                    read, inputs = [start, *ids], {"input_ids": text[None], "decoder_input_ids": [start, *ids]}
                else:
                    read = inputs = [*text.tolist(), *ids]
                    inputs = {"input_ids": read, "position_ids": range(LENGTH, LENGTH + len(read))}
                inputs = {name: torch.as_tensor(value).view(1, -1) for name, value in inputs.items()}
                if mask is not None:
                    seen = torch.cat([~mask[int(p)], torch.ones(len(read), dtype=torch.bool)])[None].long()
                    inputs["decoder_attention_mask" if backbone.card.is_encoder_decoder else "attention_mask"] = seen
                with torch.no_grad():
                    logits = frozen.model(**inputs, **cache, use_cache=True).logits
                ids.append(int(logits[0, -1].argmax()))
            assert texts[x] == frozen.decode(ids)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "t5"])
def test_hessian_products_equal_differences_of_gradients(family: str) -> None:
    backbone = tiny(family).for_second_order()
    batch, prefix = random_batch(4, 2, 2), random_prefixes(backbone, 2)
    g = torch.Generator().manual_seed(7)
    along = torch.randn(prefix.keys.shape, generator=g, dtype=torch.float64)
    for route in (backbone, tiny(family)):  # llama's own route runs its plain form
        grads = torch.autograd.grad(route.losses(prefix, batch).sum(), (prefix.keys, prefix.values), create_graph=True)
        product = torch.cat(
            [p.flatten() for p in torch.autograd.grad((grads[0] * along).sum(), (prefix.keys, prefix.values))]
        )
        small, sides = 1e-5, []
        for sign in (1, -1):
            keys, values = (prefix.keys + sign * small * along).detach().requires_grad_(), prefix.values
            moved = KeyValues(keys, values)
            sides.append(gradients(route.losses(moved, batch), moved, torch.ones(batch.rows, dtype=torch.float64)))
        difference = (sides[0] - sides[1]) / (2 * small)
        assert (product - difference).norm() <= 1e-6 * difference.norm()


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_some_layers_only(family: str) -> None:
    """The other layers read their texts at the same positions and nothing before them: what eager attention computes
    from a cache whose keys are all masked in those layers."""
    backbone, batch = tiny(family), random_batch(6, 2, PREFIXES)
    whole = random_prefixes(backbone)
    some = KeyValues(whole.keys[:, 1:], whole.values[:, 1:], layers=(1,))
    found = backbone.losses(some, batch)
    grads = gradients(found, whole, row_weights(batch))
    with masked_layers(backbone, {0}):
        expected = reference_losses(backbone.frozen, whole, batch)
        expected_grads = gradients(expected, whole, row_weights(batch))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (grads - expected_grads).norm() <= GRADIENT * expected_grads.norm()
    with pytest.raises(SpecError, match="layer by layer"):
        concatenated_states(backbone.frozen, some, batch)


@contextmanager
def masked_layers(backbone: Backbone, numbers: set[int]) -> Iterator[None]:
    """Layers whose attention sees no position of the prefix."""
    model = backbone.frozen.model
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()  # T5's stacks have own
    before = [made._attn_implementation for made in configs]
    own = {m for name, m in model.named_modules() if name.startswith("decoder") and name.endswith("SelfAttention")}

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **options: Any) -> Any:
        assert mask is None
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = scaling * q @ k.transpose(-1, -2)
        if options.get("position_bias") is not None:
            scores = scores + options["position_bias"]
        if not backbone.card.is_encoder_decoder or module in own:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(LENGTH + 1)
            if module.layer_idx in numbers:
                later[:, :LENGTH] = True
            scores = scores.masked_fill(later, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2), None

    AttentionInterface.register("masked_layers", attention)
    AttentionMaskInterface.register("masked_layers", lambda *_, **__: None)
    for made in configs:
        made._attn_implementation = "masked_layers"
    try:
        yield
    finally:
        for made, implementation in zip(configs, before, strict=True):
            made._attn_implementation = implementation


def test_a_prefix_costs_no_tokens_and_empty_texts_are_refused() -> None:
    backbone = replace(tiny("llama"), meter=Meter())
    batch, prefix = random_batch(4, 1, PREFIXES), random_prefixes(backbone)
    backbone.losses(prefix, batch)
    counted = backbone.meter.tokens
    backbone.losses(random_prompts(backbone, PREFIXES, 0), batch)
    assert backbone.meter.tokens == 2 * counted
    assert computed_tokens(prefix) == 0
    with pytest.raises(ValueError, match="nothing to predict"):
        backbone.losses(prefix, random_batch(4, 1, PREFIXES, empty_text=True))


# PEFT ---------------------------------------------------------------------------------------------------


def peft_losses(backbone: Backbone, prefix: KeyValues, batch: Batch) -> tuple[Tensor, Tensor]:
    """Losses of PEFT's model, row by row, and the gradient of its embedding, as keys and values, all flat.

    To encoder-decoders PEFT 0.21 gives the keys and values of layer 2 i modulo n in layer i of n (it doubles a list of
    layers for the cross-attention, and drops that part again).
    """
    layers, heads, length, width = prefix.keys.shape[1:]
    is_seq2seq = backbone.card.is_encoder_decoder
    options = {"num_virtual_tokens": length, "num_layers": layers, "num_attention_heads": heads}
    config = peft.PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM" if is_seq2seq else "CAUSAL_LM",
        token_dim=heads * width,
        num_transformer_submodules=2 if is_seq2seq else 1,
        **options,
    )
    model = peft.get_peft_model(backbone.frozen.model, config, autocast_adapter_dtype=False)
    try:
        weight = model.prompt_encoder["default"].embedding.weight
        both = torch.stack([prefix.keys[0], prefix.values[0]], dim=1)  # [layers, 2, H, L, d]
        weight.data = both.permute(3, 0, 1, 2, 4).flatten(1).detach().clone()
        losses = []
        for row in range(batch.rows):
            x = int(batch.text_index[row])
            text = batch.text_ids[x, : batch.text_lengths[x]]
            target = batch.target_ids[row, : batch.target_lengths[row]]
            if is_seq2seq:
                losses.append(model(input_ids=text[None], labels=target[None]).loss)
                continue
            labels = torch.cat([torch.full_like(text, -100), target])[None]
            ids = torch.cat([text, target])[None]
            losses.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss)
        stacked = torch.stack(losses)
        grad = torch.autograd.grad(stacked @ row_weights(batch), weight)[0]
        keys, values = grad.view(length, layers, 2, heads, width).permute(2, 1, 3, 0, 4)
        return stacked.detach(), torch.cat([keys.flatten(), values.flatten()])
    finally:
        backbone.frozen.model.requires_grad_(False)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma2", "gemma3", "mistral", "opt", "t5", "t5_gated"])
def test_losses_and_gradients_equal_pefts_own_model(family: str) -> None:
    backbone = tiny(family)
    batch, prefix = random_batch(4, 2, 1), random_prefixes(backbone, 1)
    layers = torch.arange(prefix.keys.shape[1])
    layers = 2 * layers % len(layers) if backbone.card.is_encoder_decoder else layers
    ours = backbone.losses(KeyValues(prefix.keys[:, layers], prefix.values[:, layers]), batch)
    theirs, gradient = peft_losses(backbone, prefix, batch)
    torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=1e-9)
    found = gradients(ours, prefix, row_weights(batch))
    assert (found - gradient).norm() <= GRADIENT * gradient.norm()

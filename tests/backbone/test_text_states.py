"""Pooled states of texts against transformers' own `output_hidden_states`, one text at a time, in float64."""

from collections.abc import Iterator

import pytest
import torch

from promptprior.backbone import Backbone, Site
from promptprior.backbone.key_values import KeyValues
from promptprior.errors import SpecError
from promptprior.notation import Tensor
from promptprior.parameterisations.weights import LoraForm, OwnForm
from promptprior.tasks.sampling.batch import Batch

from .test_engine import random_batch, random_prompts
from .tiny import FAMILIES, TrueFloat64, tiny

SITES = (Site(1, "last"), Site(0, "mean"), Site(2, "mean"), Site(1, "mean"), Site(2, "last"), Site(0, "last"))
STATES, GRADIENT = 1e-9, 1e-8


@pytest.fixture(autouse=True)
def true_float64() -> Iterator[None]:
    with TrueFloat64():
        yield


def slow_states(backbone: Backbone, prompts: Tensor, batch: Batch, sites: tuple[Site, ...] = SITES) -> Tensor:
    """The model's own hidden states, pooled text by text."""
    model, rows = backbone.frozen.model, []
    reader = model.get_encoder() if backbone.card.is_encoder_decoder else model.base_model
    for x in range(batch.texts):
        prompt = prompts[batch.prompt_index[x]]
        ids = batch.text_ids[x, : batch.text_lengths[x]]
        embeds = torch.cat([prompt, backbone.frozen.embed(ids)])[None]
        states = reader(inputs_embeds=embeds, output_hidden_states=True).hidden_states
        own = [states[site.layer][0, len(prompt) :] for site in sites]
        pooled = [s.mean(0) if site.pooling == "mean" else s[-1] for s, site in zip(own, sites, strict=True)]
        rows.append(torch.stack(pooled))
    return torch.stack(rows)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt"])
@pytest.mark.parametrize("prompts", [1, 3, 6])
def test_states_and_gradients_equal_the_models_own(family: str, prompts: int) -> None:
    backbone = tiny(family)
    batch, soft = random_batch(6, 2, prompts), random_prompts(backbone, prompts, 5)
    slow, fast = slow_states(backbone, soft, batch), backbone.text_states(soft, batch, SITES)
    torch.testing.assert_close(fast, slow, rtol=0, atol=STATES)
    for s in range(len(SITES)):
        weights = torch.randn(slow[:, s].shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        if SITES[s].layer == 0:  # embeddings of texts do not depend on the prompt
            continue
        expected = torch.autograd.grad((slow[:, s] * weights).sum(), soft, retain_graph=True)[0]
        found = torch.autograd.grad((fast[:, s] * weights).sum(), soft, retain_graph=True)[0]
        assert (found - expected).norm() <= GRADIENT * expected.norm()
    with torch.no_grad():
        torch.testing.assert_close(backbone.text_states(soft, batch, SITES), slow, rtol=0, atol=STATES)


def test_states_that_a_model_projects_to_another_width_are_read_before_that() -> None:
    backbone = tiny("opt")  # 32 wide inside, 16 wide outside
    batch, soft = random_batch(3, 1, 1), random_prompts(backbone, 1, 2)
    inner = (Site(1, "mean"), Site(1, "last"))
    slow = slow_states(backbone, soft, batch, inner)
    torch.testing.assert_close(backbone.text_states(soft, batch, inner), slow, rtol=0, atol=STATES)
    assert backbone.text_states(soft, batch, SITES).shape == (3, len(SITES), 32)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "t5"])
def test_no_prompt_and_chunks_change_nothing(family: str) -> None:
    backbone, batch = tiny(family), random_batch(5, 1, 2)
    none = torch.zeros(2, 0, backbone.width, dtype=torch.float64)
    slow = slow_states(backbone, none, batch)
    torch.testing.assert_close(backbone.text_states(none, batch, SITES), slow, rtol=0, atol=STATES)
    torch.testing.assert_close(tiny(family, max_tokens=12).text_states(none, batch, SITES), slow, rtol=0, atol=STATES)


@pytest.mark.parametrize("family", ["gpt2", "bart"])  # those that cast nothing: see TrueFloat64
def test_recomputed_layers_give_the_same_gradient(family: str) -> None:
    backbone, frugal, batch = tiny(family), tiny(family, recompute=True, max_tokens=12), random_batch(5, 1, 2)
    soft = random_prompts(backbone, 2, 4)
    expected, found = (each.text_states(soft, batch, SITES) for each in (backbone, frugal))
    torch.testing.assert_close(found, expected, rtol=0, atol=STATES)
    gradients = [torch.autograd.grad(states.square().sum(), soft)[0] for states in (expected, found)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "t5"])
def test_an_empty_text_has_zeros(family: str) -> None:
    backbone = tiny(family)
    batch, soft = random_batch(4, 1, 2, empty_text=True), random_prompts(backbone, 2, 3)
    states = backbone.text_states(soft, batch, SITES)
    assert (states[0] == 0).all()
    others = batch.take(torch.arange(1, 4))
    torch.testing.assert_close(states[1:], slow_states(backbone, soft, others), rtol=0, atol=STATES)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_hidden_tokens_are_those_of_a_shorter_prompt(family: str) -> None:
    backbone = tiny(family)
    batch, soft = random_batch(4, 1, 1), random_prompts(backbone, 1, 4)
    visible = backbone.text_states(soft, batch, SITES)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    torch.testing.assert_close(backbone.text_states(soft, batch, SITES, nothing), visible, rtol=0, atol=STATES)
    hidden = torch.tensor([[False, True, False, True]])
    states = backbone.text_states(soft, batch, SITES, hidden)
    noisy = soft + torch.randn(soft.shape, dtype=torch.float64) * hidden[..., None]
    torch.testing.assert_close(backbone.text_states(noisy, batch, SITES, hidden), states, rtol=0, atol=STATES)
    assert not torch.allclose(states, visible)


@pytest.mark.parametrize(("family", "once"), [("gpt2", "c_attn"), ("llama", "q_proj"), ("t5", "SelfAttention.q")])
def test_only_the_layers_below_are_run_and_counted(family: str, once: str) -> None:
    """`once` is what each block calls once, whether transformers' or written by hand."""
    backbone, batch = tiny(family), random_batch(5, 3, 2)
    soft, whole = random_prompts(backbone, 2, 4), int(batch.text_lengths.sum()) + 2 * 4
    calls: list[str] = []
    projections = [module for name, module in backbone.frozen.model.named_modules() if name.endswith(once)]
    handles = [module.register_forward_hook(lambda *_: calls.append(once)) for module in projections]
    for layer, tokens in ((0, 0), (1, round(whole / 2)), (2, whole)):
        before, rows = backbone.meter.tokens, backbone.meter.rows
        calls.clear()
        backbone.text_states(soft, batch, [Site(layer, "mean")])
        assert backbone.meter.tokens - before == tokens
        assert backbone.meter.rows == rows
        assert len(calls) == layer
    for handle in handles:
        handle.remove()


def test_a_layer_that_is_not_there_is_named() -> None:
    backbone = tiny("gpt2")
    with pytest.raises(SpecError, match=r"layer 3 of tiny-gpt2.*0 \(embeddings\) to 2"):
        backbone.text_states(random_prompts(backbone, 1, 1), random_batch(1, 1, 1), [Site(3, "mean")])


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_other_weights_have_states_of_their_own(family: str) -> None:
    backbone, batch = tiny(family), random_batch(4, 2, 1)
    none = torch.zeros(1, 0, backbone.width, dtype=torch.float64)
    model = OwnForm("vectors").answers(backbone)
    same = model.text_states(model.start, batch, SITES)
    torch.testing.assert_close(same, slow_states(backbone, none, batch), rtol=0, atol=STATES)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in model.start.items()
    }
    moved = model.text_states(weights, batch, SITES)
    own = {name: value.clone() for name, value in backbone.frozen.model.state_dict().items()}
    backbone.frozen.model.load_state_dict({**own, **weights})
    expected = slow_states(backbone, none, batch)
    backbone.frozen.model.load_state_dict(own)
    torch.testing.assert_close(moved, expected, rtol=0, atol=STATES)
    assert not torch.allclose(moved, same)


def test_lora_without_its_addition_has_the_models_states() -> None:
    backbone, batch = tiny("llama"), random_batch(4, 2, 1)
    none = torch.zeros(1, 0, backbone.width, dtype=torch.float64)
    model = LoraForm(2, 4.0).answers(backbone)
    expected = slow_states(backbone, none, batch)
    torch.testing.assert_close(model.text_states(model.start, batch, SITES), expected, rtol=0, atol=STATES)
    weights = {name: value + 0.1 for name, value in model.start.items()}
    assert not torch.allclose(model.text_states(weights, batch, SITES), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_states_behind_a_prefix_are_those_of_the_models_own_cache(family: str) -> None:
    """A prefix that is the cache of a prompt's tokens gives the states that the prompt gives."""
    backbone = tiny(family)
    batch, model = random_batch(4, 2, 1), backbone.frozen.model
    soft = random_prompts(backbone, 1, 5).detach()
    cache = model.base_model(inputs_embeds=soft, use_cache=True).past_key_values
    prefix = KeyValues(
        torch.stack([layer.keys[0] for layer in cache.layers])[None],
        torch.stack([layer.values[0] for layer in cache.layers])[None],
    )
    with torch.no_grad():
        behind = backbone.text_states(prefix, batch, SITES)
        torch.testing.assert_close(behind, backbone.text_states(soft, batch, SITES), rtol=0, atol=STATES)

"""Hidden prompt tokens: exactly what plain transformers computes with an attention mask over the concatenation."""

import functools
from collections.abc import Iterator

import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.backbone.forward.reference import reference_losses
from promptprior.errors import SpecError
from promptprior.notation import Tensor
from promptprior.tasks.sampling.batch import Batch

from .test_engine import random_batch, random_prompts
from .tiny import FAMILIES, TrueFloat64, tiny

LENGTH, PROMPTS = 5, 3
SERVED = [family for family in FAMILIES if family != "bloom"]


@pytest.fixture(autouse=True)
def true_float64() -> Iterator[None]:
    with TrueFloat64():
        yield


def some_hidden() -> Tensor:
    """The first tokens of one prompt, a token in the middle of another, the last of a third."""
    hidden = torch.zeros(PROMPTS, LENGTH, dtype=torch.bool)
    hidden[0, :2] = hidden[1, 2] = hidden[2, [0, 4]] = True
    return hidden


def losses_of_transformers(backbone: Backbone, prompts: Tensor, batch: Batch, hidden: Tensor) -> Tensor:
    """Row by row, behind two pads, by `labels`: another way than the slow reference's."""
    model, losses = backbone.frozen.model, []
    for row in range(batch.rows):
        x = int(batch.text_index[row])
        p = int(batch.prompt_index[x])
        text, target = batch.text_ids[x, : batch.text_lengths[x]], batch.target_ids[row, : batch.target_lengths[row]]
        if backbone.card.is_encoder_decoder:
            embeds = torch.cat([prompts[p], backbone.frozen.embed(text)])[None]
            mask = torch.cat([~hidden[p], torch.ones(len(text), dtype=torch.bool)])[None].long()
            losses.append(model(inputs_embeds=embeds, attention_mask=mask, labels=target[None]).loss)
            continue
        pads = 2
        embeds = torch.cat([prompts[p], backbone.frozen.embed(torch.cat([text, target]))])
        labels = torch.cat([torch.full((LENGTH + len(text),), -100), target])
        embeds = torch.cat([embeds.new_zeros(pads, embeds.shape[1]), embeds])[None]
        mask = torch.cat([torch.zeros(pads, dtype=torch.bool), ~hidden[p], torch.ones(len(text) + len(target)).bool()])
        at = (torch.arange(embeds.shape[1]) - pads).clamp(min=0)[None]
        labels = torch.cat([torch.full((pads,), -100), labels])[None]
        losses.append(
            model(inputs_embeds=embeds, attention_mask=mask[None].long(), position_ids=at, labels=labels).loss
        )
    return torch.stack(losses)


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("family", SERVED)
def test_losses_and_gradients_under_an_attention_mask(family: str, choices: int) -> None:
    backbone, hidden = tiny(family), some_hidden()
    batch, prompts = random_batch(6, choices, PROMPTS), random_prompts(backbone, PROMPTS, LENGTH)
    weights = torch.linspace(0.5, 2, batch.rows, dtype=torch.float64)
    losses = backbone.losses(prompts, batch, hidden)
    gradient = torch.autograd.grad(losses @ weights, prompts)[0]
    for oracle in (
        losses_of_transformers(backbone, prompts, batch, hidden),
        reference_losses(backbone.frozen, prompts, batch, hidden),
    ):
        torch.testing.assert_close(losses, oracle, rtol=0, atol=1e-9)
        expected = torch.autograd.grad(oracle @ weights, prompts)[0]
        assert (gradient - expected).norm() <= 1e-7 * expected.norm()
    assert gradient[hidden].abs().max() == 0
    assert gradient[~hidden].abs().max() > 0
    assert (losses - backbone.losses(prompts, batch)).abs().max() > 1e-3


@pytest.mark.parametrize("family", SERVED)
def test_nothing_hidden_is_the_fast_route_and_what_is_hidden_does_not_matter(family: str) -> None:
    backbone, hidden = tiny(family), some_hidden()
    batch, prompts = random_batch(5, 2, PROMPTS), random_prompts(backbone, PROMPTS, LENGTH)
    nothing = backbone.losses(prompts, batch, torch.zeros_like(hidden))
    torch.testing.assert_close(nothing, backbone.losses(prompts, batch), rtol=0, atol=1e-10)
    other = torch.where(hidden[..., None], 7.0, prompts)
    found, expected = (backbone.losses(p, batch, hidden) for p in (other, prompts))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert backbone.generate(other, batch, 6, hidden=hidden) == backbone.generate(prompts, batch, 6, hidden=hidden)


@pytest.mark.parametrize("family", SERVED)
def test_greedy_text_is_the_best_token_under_the_mask_again_and_again(family: str) -> None:
    backbone, hidden, steps = tiny(family), some_hidden(), 6
    model, batch = backbone.frozen.model, random_batch(5, 1, PROMPTS)
    prompts = 3 * random_prompts(backbone, PROMPTS, LENGTH).detach()
    texts = backbone.generate(prompts, batch, steps, hidden=hidden)
    if family in ("gpt2", "llama", "opt", "t5"):  # some tiny models say the same whatever they read
        assert texts != backbone.generate(prompts, batch, steps)
    for x in range(batch.texts):
        p, ids = int(batch.prompt_index[x]), []
        text = batch.text_ids[x, : batch.text_lengths[x]]
        start = [getattr(model.config, "decoder_start_token_id", None)]
        while len(ids) < steps and ids[-1:] != [1]:
            grown = text if backbone.card.is_encoder_decoder else torch.tensor([*text.tolist(), *ids])
            embeds = torch.cat([prompts[p], backbone.frozen.embed(grown)])[None]
            mask = torch.cat([~hidden[p], torch.ones(len(grown), dtype=torch.bool)])[None].long()
            more = (
                {"decoder_input_ids": torch.tensor([[*start, *ids]])}
                if backbone.card.is_encoder_decoder
                else {"position_ids": torch.arange(embeds.shape[1])[None]}
            )
            with torch.no_grad():
                logits = model(inputs_embeds=embeds, attention_mask=mask, **more, use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
        assert texts[x] == backbone.frozen.decode(ids)


def test_a_family_that_counts_visible_tokens_says_so() -> None:
    backbone = tiny("bloom")
    batch, prompts = random_batch(3, 1, PROMPTS), random_prompts(backbone, PROMPTS, LENGTH)
    with pytest.raises(SpecError, match=r"hidden prompt tokens: tiny-bloom \(BloomForCausalLM\) takes no position_ids"):
        backbone.losses(prompts, batch, some_hidden())
    with pytest.raises(SpecError, match="takes no position_ids"):
        backbone.generate(prompts, batch, 3, hidden=some_hidden())


def test_beams_cannot_hide() -> None:
    backbone = tiny("llama")
    with pytest.raises(SpecError, match="beam search would move positions"):
        backbone.generate(
            random_prompts(backbone, PROMPTS, LENGTH).detach(),
            random_batch(3, 1, PROMPTS),
            3,
            beams=2,
            hidden=some_hidden(),
        )


def test_numbers_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some attention gives for a token that sees nothing at all."""
    backbone = tiny("llama")
    decoder = backbone.frozen.model.base_model
    plain = decoder.forward

    @functools.wraps(plain)
    def broken(**inputs: Tensor) -> object:
        out = plain(**inputs)
        out.last_hidden_state = out.last_hidden_state * float("nan")
        return out

    monkeypatch.setattr(decoder, "forward", broken)
    with pytest.raises(SpecError, match=r"tiny-llama \(LlamaForCausalLM\) gives losses that are not finite"):
        backbone.losses(random_prompts(backbone, PROMPTS, LENGTH), random_batch(3, 1, PROMPTS), some_hidden())

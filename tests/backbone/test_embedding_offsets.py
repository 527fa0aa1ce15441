"""Offsets on texts, by every route, against the model's own forward pass on embeddings made by hand."""

from collections.abc import Iterator

import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.notation import Tensor
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from tests.backbone.tiny import FAMILIES, TrueFloat64, tiny

LENGTH, POSITIONS, PROMPTS = 3, 4, 2
TEXTS = [(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14), (5, 6, 7)]  # shorter and longer than the offsets, and one twice
READS = [0, 1, 1, 1]


@pytest.fixture(autouse=True)
def true_float64() -> Iterator[None]:
    with TrueFloat64():
        yield


def batch(choices: int) -> Batch:
    targets = ((20, 21), (22,), (23, 24, 25))[:choices]
    return collate([Tokens(text, targets) for text in TEXTS], READS)


def tensors(backbone: Backbone) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = (PROMPTS, LENGTH, backbone.width), (PROMPTS, POSITIONS, backbone.width)
    prompts, offsets = (torch.randn(*s, generator=g, dtype=torch.float64) * backbone.scale for s in shapes)
    return prompts.requires_grad_(), offsets.requires_grad_()


def by_hand(backbone: Backbone, prompts: Tensor, offsets: Tensor, made: Batch) -> Tensor:
    """Each row by itself: prompt, text with its offsets, target."""
    model, rows = backbone.frozen.model, []
    table = model.get_input_embeddings()
    for row in range(made.rows):
        x = int(made.text_index[row])
        text = torch.tensor(TEXTS[x])
        target = made.target_ids[row, : made.target_lengths[row]]
        words = list(table(text).unbind())
        for place in range(min(len(words), POSITIONS)):
            words[place] = words[place] + offsets[READS[x], place]
        embeds = torch.cat([prompts[READS[x]], torch.stack(words)])
        if backbone.frozen.card.is_encoder_decoder:
            logits = model(inputs_embeds=embeds[None], labels=target[None]).logits[0]
        else:
            logits = model(inputs_embeds=torch.cat([embeds, table(target)])[None]).logits[0, len(embeds) - 1 : -1]
        rows.append(torch.nn.functional.cross_entropy(logits, target))
    return torch.stack(rows)


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_of_prompts_and_offsets(family: str, choices: int) -> None:
    backbone = tiny(family)
    both = tensors(backbone)
    made = batch(choices)
    reader, read = backbone.with_offsets(both[1], made)
    found, expected = reader.losses(both[0], read), by_hand(backbone, *both, made)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    weights = torch.arange(1.0, made.rows + 1)
    for one, other in zip(*(torch.autograd.grad((x * weights).sum(), both) for x in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        assert float(other.abs().max()) > 0


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_recomputed_activations_and_pieces_change_nothing(family: str) -> None:
    plain, careful = tiny(family), tiny(family, recompute=True, max_tokens=12)
    gradients = []
    for backbone in (plain, careful):
        both = tensors(backbone)
        reader, read = backbone.with_offsets(both[1], batch(3))
        gradients.append(torch.autograd.grad(reader.losses(both[0], read).sum(), both))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_second_derivatives(family: str) -> None:
    products = []
    backbone = tiny(family)
    for losses_of in (lambda *both: by_hand(backbone, *both, batch(1)), lambda *both: routed(backbone, *both)):
        both = tensors(backbone)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            slope = torch.autograd.grad(losses_of(*both).sum(), both, create_graph=True)[1].square().sum()
            products.append(torch.autograd.grad(slope, both))
    for one, other in zip(*products, strict=True):  # norms inside transformers' layers are in float32
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6 * float(other.abs().max()))


def routed(backbone: Backbone, prompts: Tensor, offsets: Tensor) -> Tensor:
    reader, read = backbone.with_offsets(offsets, batch(1))
    return reader.losses(prompts, read)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_generation_reads_them_too(family: str) -> None:
    backbone = tiny(family)
    prompts, offsets = (3 * value.detach() for value in tensors(backbone))
    made = batch(1)
    reader, read = backbone.with_offsets(offsets, made)
    found = reader.generate(prompts, read, 5)
    model, plain = backbone.frozen.model, backbone.generate(prompts, made, 5)
    for x, text in enumerate(TEXTS):
        words = model.get_input_embeddings()(torch.tensor(text)).clone()
        words[:POSITIONS] += offsets[READS[x], : len(text)]
        embeds = torch.cat([prompts[READS[x]], words])[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        ids = model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=5, do_sample=False)
        assert found[x] == backbone.frozen.decode(ids[0].tolist())
    assert found != plain


def test_offsets_of_zero_and_no_texts_to_speak_of() -> None:
    backbone = tiny("llama")
    prompts, offsets = (value.detach() for value in tensors(backbone))
    reader, read = backbone.with_offsets(torch.zeros_like(offsets), batch(3))
    torch.testing.assert_close(reader.losses(prompts, read), backbone.losses(prompts, batch(3)), rtol=1e-12, atol=0)
    empty = collate([Tokens((), ((4,),)), Tokens((5,), ((4,),))], copies=[0, 1])
    reader, read = backbone.with_offsets(offsets, empty)
    found, plain = reader.losses(prompts, read), backbone.losses(prompts, empty)
    torch.testing.assert_close(found[0], plain[0], rtol=1e-12, atol=0)
    assert not torch.allclose(found[1], plain[1])


def test_work_is_counted_by_the_same_meter() -> None:
    backbone = tiny("llama")
    prompts, offsets = tensors(backbone)
    reader, read = backbone.with_offsets(offsets, batch(1))
    reader.losses(prompts, read)
    assert backbone.meter.rows == len(TEXTS)

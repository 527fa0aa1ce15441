"""States of texts through objectives: each text behind the prompt, the offsets and the weights of its own copy."""

import pytest
import torch

from promptprior.backbone import Site
from promptprior.errors import SpecError
from promptprior.objectives.objective import PromptObjective
from promptprior.objectives.weight_objective import WeightObjective
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.offset import Offset
from promptprior.parameterisations.weights import LoraForm
from tests.backbone.test_text_states import SITES, slow_states
from tests.backbone.tiny import TrueFloat64, tiny
from tests.parameterisations.strangers import Prefix
from tests.world import random_batch

READS = [0, 1, 0, 2, 1]


@pytest.fixture(autouse=True)
def true_float64():
    with TrueFloat64():
        yield


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_texts_are_read_behind_their_copys_prompt_in_any_order(family: str) -> None:
    backbone, batch = tiny(family), random_batch(5, READS, choices=2)
    soft = torch.randn(3, 4, backbone.width, dtype=torch.float64, requires_grad=True)
    objective = PromptObjective(backbone, Direct(4, backbone.width))
    expected = slow_states(backbone, soft, batch)
    found = objective.text_states({"prompt": soft}, batch, SITES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    with torch.no_grad():
        sorted_by_prompt = objective.text_states({"prompt": soft}, batch, SITES)
    torch.testing.assert_close(sorted_by_prompt, expected, rtol=0, atol=1e-9)
    weights = torch.randn(found.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((states * weights).sum(), soft)[0] for states in (found, expected)]
    assert (gradients[0] - gradients[1]).norm() <= 1e-8 * gradients[1].norm()


def test_every_copy_has_the_states_of_its_own_weights() -> None:
    backbone, batch = tiny("llama"), random_batch(5, READS)
    objective = WeightObjective(backbone, LoraForm(2, 4.0))
    start = objective.answers.start
    params = {
        name: torch.randn(3, *value.shape, generator=torch.Generator().manual_seed(i), dtype=value.dtype) * 0.3
        for i, (name, value) in enumerate(start.items())
    }
    found = objective.text_states(params, batch, SITES)
    for x, copy in enumerate(READS):
        own = {name: value[copy] for name, value in params.items()}
        alone = objective.answers.text_states(own, batch.take(torch.tensor([x])), SITES)
        torch.testing.assert_close(found[x], alone[0], rtol=0, atol=1e-9)
    assert not torch.allclose(found[0], objective.answers.text_states(start, batch, SITES)[0])


def test_offsets_are_added_to_the_texts_that_are_read() -> None:
    backbone, batch, form = tiny("gpt2"), random_batch(5, READS), Offset(2, 3, 2)
    shapes = {"prompt": (3, 2, 32), "a": (3, 3, 2), "b": (3, 2, 32)}
    params = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    found = PromptObjective(backbone, form).text_states(params, batch, [Site(2, "mean"), Site(1, "last")])
    for x, copy in enumerate(READS):
        words = backbone.frozen.embed(batch.text_ids[x, : batch.text_lengths[x]])
        added = (params["a"] @ params["b"])[copy][: len(words)]
        moved = torch.cat([words[: len(added)] + added, words[len(added) :]])
        embeds = torch.cat([params["prompt"][copy], moved])[None]
        own = backbone.frozen.model.base_model(inputs_embeds=embeds, output_hidden_states=True).hidden_states
        expected = torch.stack([own[2][0, 2:].mean(0), own[1][0, -1]])
        torch.testing.assert_close(found[x], expected, rtol=0, atol=1e-9)


def test_a_form_without_states_says_so() -> None:
    objective = WeightObjective(tiny("gpt2"), Prefix(2))
    params = {"prefix": torch.zeros(1, 2, 32, dtype=torch.float64)}
    with pytest.raises(SpecError, match=r"'own_prefix' hands out no states.*head verbalizer"):
        objective.text_states(params, random_batch(2), [Site(1, "mean")])

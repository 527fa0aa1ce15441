"""A prior for the linear head: what it learns from, and what targets get."""

from dataclasses import replace

import pytest
import torch

from promptprior.adapt import adapt, make_episode
from promptprior.backbone import Backbone, Site
from promptprior.config.training import Settings, Training
from promptprior.errors import PromptpriorWarning, SpecError
from promptprior.fit import RunControl, fit, make_run_context
from promptprior.methods import make_method
from promptprior.methods.from_sources.ridge_prior import RidgePrior
from promptprior.tasks import Task
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, text_task

NEEDS = "learns from choice tasks with the same two or more classes for all examples"


def mostly_late(word: str) -> int:
    """Whether more letters are of the alphabet's second half."""
    return int(sum(letter > "m" for letter in word) > len(word) / 2)


def many_vowels(word: str) -> int:
    """None, one, or more."""
    return min(2, sum(letter in "aeiou" for letter in word))


SOURCES = [
    choice_task("late", mostly_late, size=48),
    choice_task("vowels", many_vowels, ("no", "one", "more"), size=48),
]


def settings(steps: int) -> Settings:
    return Settings(length=4, source=Training(steps=steps, learning_rates=(0.5,)), target=Training(steps=3))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


def recipe(**options: object) -> RidgePrior:
    made = make_method("ridge_prior", {"support": 4, "query": 6, **options})
    assert isinstance(made, RidgePrior)
    return made


def test_targets_get_the_prompt_as_it_is_and_a_head_that_reads_what_the_prior_was_trained_for(
    backbone: Backbone,
) -> None:
    prior = fit(recipe(layer=2, pooling="last"), SOURCES, backbone, settings(2))
    assert prior.header.diagnostics["site"] == [2, "last"]
    episodes = [make_episode(SOURCES[0], 3, seed) for seed in (13, 21)]
    for method in (recipe(), recipe(layer=2, pooling="last")):  # the prior's site counts
        for done in adapt(method, episodes, backbone, prior, settings(2)):
            assert torch.equal(done.prompt.params["prompt"], prior.params["prompt"])
            header = done.prompt.header
            assert (header.head, header.head_settings["layers"], header.head_settings["poolings"]) == (
                "linear",
                [2],
                ["last"],
            )
            assert done.trainable == sum(v.numel() for n, v in done.prompt.params.items() if n.startswith("head."))
    one = adapt(recipe(), episodes[:1], backbone, prior, replace(settings(2), folds=3))[0]
    assert one.prompt.header.head_settings["layers"] == [2]
    assert len(one.out_of_fold) == 12


def test_another_head_is_left_as_it_is(backbone: Backbone) -> None:
    prior = fit(recipe(), SOURCES, backbone, settings(1))
    done = adapt(recipe(head="nearest"), [make_episode(SOURCES[0], 3, 13)], backbone, prior, settings(1))[0]
    assert (done.prompt.header.head, done.prompt.header.head_settings["poolings"]) == ("nearest", ["mean", "last"])


def test_sources_without_classes_are_left_out_and_said(backbone: Backbone) -> None:
    others = [text_task("free", str.upper), choice_task("constant", always(0))]
    with pytest.warns(PromptpriorWarning, match=rf"{NEEDS}.*left out free, constant"):
        prior = fit(recipe(), [others[0], SOURCES[0], others[1]], backbone, settings(1))
    assert prior.header.diagnostics["left_out"] == ["free", "constant"]
    with pytest.raises(SpecError, match=rf"'ridge_prior' {NEEDS}.*got free, constant \(--sources\)"):
        fit(recipe(), others, backbone, settings(1))


def test_texts_that_stand_twice_are_drawn_once(backbone: Backbone) -> None:
    """Else a text of the query could stand in the support."""
    task = SOURCES[0]
    rows = task.split("train")
    twice = replace(task, examples={**task.examples, "train": (*rows, *(replace(e, id=f"{e.id}-2") for e in rows))})
    context = make_run_context(backbone, settings(1), RunControl())
    draws, _ = recipe().draws(context, [twice], seed=3)
    assert len(draws.pools[0].items) == len({row.text.lower() for row in rows})


@pytest.mark.parametrize(("layer", "expected"), [(None, 1), (2, 2)])
def test_the_middle_layer_is_the_default(backbone: Backbone, layer: int | None, expected: int) -> None:
    assert recipe(layer=layer).site(backbone) == Site(expected, "mean")


def test_what_cannot_be_is_said(backbone: Backbone) -> None:
    with pytest.raises(SpecError, match=r"layer 3 \(option layer of ridge_prior\): expected 1 to 2"):
        fit(recipe(layer=3), SOURCES, backbone, settings(1))
    free: Task = text_task("free", str.upper)
    assert "free text" in str(recipe().serves(free))


def test_arms_with_a_linear_head_share_the_priors_of_their_methods(backbone: Backbone) -> None:
    prior = fit(make_method("multitask"), SOURCES, backbone, settings(2))
    method = make_method("multitask_linear")
    assert method.source_recipe() == make_method("multitask").source_recipe()
    done = adapt(method, [make_episode(SOURCES[0], 3, 13)], backbone, prior, settings(2))[0]
    assert done.prompt.header.head == "linear"
    bmtpt = make_method("bmtpt_linear")
    assert bmtpt.source_recipe() == make_method("bmtpt").source_recipe()

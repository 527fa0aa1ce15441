"""Prompt arithmetic against sums written out by hand."""

from typing import Any

import pytest
import torch

from promptprior.adapt import adapt, make_episode
from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone
from promptprior.config.training import Training
from promptprior.errors import SpecError
from promptprior.fit import RunControl, fit, make_run_context
from promptprior.methods import make_method
from promptprior.methods.from_sources.prompt_arithmetic import PromptArithmetic
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.learned import AdaptationInit
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, short

ANSWERS = ("red", "no", "it was")
SOURCES = [choice_task(f"s{i}", always(i), ANSWERS) for i in range(3)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@pytest.fixture(scope="module")
def prior(backbone: Backbone) -> Prior:
    source = Training(steps=25, batch_size=12, learning_rates=(0.3,), schedule="constant")
    return fit(Spot(), SOURCES, backbone, short(source=source))


def begun(backbone: Backbone, prior: Prior, **options: Any) -> AdaptationInit:
    episodes = [make_episode(choice_task(f"t{i}", always(i), ANSWERS), 8, 13) for i in range(3)]
    context = make_run_context(backbone, short(), RunControl())
    return PromptArithmetic(**options).init(context, [prior] * 3, episodes)


def test_sums_and_means_of_task_vectors(backbone: Backbone, prior: Prior) -> None:
    start, (a, b, c) = prior.params["start"][0], prior.params["prompt"]
    every = begun(backbone, prior, top=0).params["prompt"]
    torch.testing.assert_close(every[1], start + (a - start) + (b - start) + (c - start))
    mean = begun(backbone, prior, top=0, combine="mean").params["prompt"]
    torch.testing.assert_close(mean[2], (a + b + c) / 3)
    scaled = begun(backbone, prior, top=0, scales=(0.5, 1.0))
    assert scaled.variants == [{"scale": 0.5}, {"scale": 1.0}]
    torch.testing.assert_close(scaled.params["prompt"][1::2], every)
    torch.testing.assert_close(scaled.params["prompt"][0::2], (start + every) / 2)


def test_the_most_similar_source_alone_is_spots_start(backbone: Backbone, prior: Prior) -> None:
    one = begun(backbone, prior, top=1, probe_steps=25).params["prompt"]
    torch.testing.assert_close(one, prior.params["prompt"])  # target i is source i in disguise


def test_weights_by_hand() -> None:
    task_similarity = torch.tensor([0.2, -0.5, 0.6])
    assert PromptArithmetic(top=2).weights(task_similarity).tolist() == [1, 0, 1]
    assert PromptArithmetic(top=2, combine="mean").weights(task_similarity).tolist() == [0.5, 0, 0.5]
    assert PromptArithmetic(top=2, combine="weighted").weights(task_similarity).tolist() == pytest.approx(
        [0.25, 0, 0.75], abs=1e-5
    )
    assert PromptArithmetic(top=0, combine="weighted").weights(task_similarity).tolist() == pytest.approx(
        [0.25, 0, 0.75], abs=1e-5
    )
    assert PromptArithmetic(top=9).weights(task_similarity).tolist() == [1, 1, 1]


def test_dev_picks_the_scale(backbone: Backbone, prior: Prior) -> None:
    episode = make_episode(choice_task("t", always(0), ANSWERS), 8, 13)
    still = short(target=Training(steps=0))
    options = {"top": 1, "probe_steps": 25, "scales": (0.0, 1.0, -3.0)}
    made = adapt(make_method("prompt_arithmetic", options), [episode], backbone, prior, still)[0]
    assert made.variant == {"scale": 1.0}
    torch.testing.assert_close(made.prompt.params["prompt"][0], prior.params["prompt"][0])


def test_it_shares_spots_prior_and_refuses_nonsense() -> None:
    assert PromptArithmetic(top=1, combine="mean", scales=(2.0,)).source_recipe() == Spot()
    with pytest.raises(SpecError, match=r"scales \(\) \(--options.scales\): expected at least one number"):
        make_method("prompt_arithmetic", {"scales": ()})

"""The meta-learners as recipes on a tiny model; each fault of papers.md 3.6 as a test."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError, TrainingError
from promptprior.evaluate import dev_scores, make_eval_set
from promptprior.fit import RunControl, fit, make_run_context
from promptprior.methods import make_method
from promptprior.methods.from_sources.meta_prompt_tuning import MetaPromptTuning
from promptprior.methods.published import published_options, published_settings
from promptprior.methods.run_context import InitialParams, stacked
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, early

SOURCES = [choice_task("yes", always(0)), choice_task("early", early), choice_task("no", always(1), size=24)]
TARGETS = [choice_task("target", always(0)), choice_task("other", early)]
NAMES = ("maml", "fomaml", "reptile", "meta_sgd", "imaml")
RATE = {"inner_rate": 1.0}


def settings(steps: int = 12) -> Settings:
    stage = Training(steps=steps, batch_size=16, learning_rates=(0.5,))
    return Settings(length=3, source=stage, target=replace(stage, steps=3, batch_size=4))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("gpt2", torch.float32)


def fitted(backbone: Backbone, name: str, steps: int = 12, **options: Any) -> Prior:
    return fit(make_method(name, {**RATE, **options}), SOURCES, backbone, settings(steps))


@pytest.mark.parametrize("name", NAMES)
def test_every_meta_learner_fits_adapts_and_scores(backbone: Backbone, name: str, tmp_path: Any) -> None:
    method = make_method(name, RATE)
    prior = fit(method, SOURCES, backbone, settings(), control=RunControl(tmp_path))
    assert prior.header.diagnostics["moved"][0][0] > 1e-3  # type: ignore[index]
    again = Prior.from_pretrained(tmp_path / "prior")
    episodes = [make_episode(task, 2, seed) for task in TARGETS for seed in (13, 21)]
    done = adapt(method, episodes, backbone, again, settings())
    assert len(score_on_test(backbone, done, limit=4)) == 4
    assert set(done[0].prompt.params) == {"prompt"}


@pytest.mark.parametrize("name", NAMES)
def test_upstream_loss_falls(backbone: Backbone, name: str) -> None:
    """3.6.1: the released Reptile ended where it began."""
    losses = [value[0] for value in fitted(backbone, name, 12, budget="updates").header.diagnostics["source_loss"]]  # type: ignore[attr-defined]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.3


def test_the_published_inner_rate_is_refused(backbone: Backbone) -> None:
    """3.6.2: 3e-5 in absolute terms, here in units of the scale."""
    with pytest.raises(TrainingError, match="3e-5 is such a no-op"):
        fitted(backbone, "maml", inner_rate=3e-5 / backbone.scale**2)
    with pytest.raises(SpecError, match="inner rate"):
        MetaPromptTuning(inner_rate=0.0)


def test_the_best_prompt_is_what_is_scored_not_the_last(backbone: Backbone) -> None:
    """3.6.3: a ruinous learning rate; what comes back is what dev liked best, with the score it had then."""
    wild = replace(settings().target, steps=4, learning_rates=(300.0,), eval_every=1, schedule="constant")
    method = make_method("fomaml", RATE)
    prior = fit(method, SOURCES, backbone, settings())
    episode = make_episode(TARGETS[1], 4, 13)
    (done,) = adapt(method, [episode], backbone, prior, replace(settings(), target=wild))
    marks = {line["step"]: line["dev_nll"] for line in done.curve}
    assert marks[4] > marks[done.best_step] + 0.01
    objective = PromptObjective(backbone, Direct(3, backbone.width))
    _, nll = dev_scores(
        objective, [make_eval_set(objective, episode.task, episode.shots.dev)], dict(done.prompt.params)
    )
    assert nll.item() == pytest.approx(marks[done.best_step], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_budget_in_rows_is_multitasks(backbone: Backbone, name: str) -> None:
    """3.6.5: MTL made 280,000 updates against 5,000, on more data."""
    budget = fit(make_method("multitask"), SOURCES, backbone, settings(40)).header.diagnostics["cost"]["rows"]  # type: ignore[index]
    cost = fitted(backbone, name, 40).header.diagnostics["cost"]["rows"]  # type: ignore[index]
    assert 0.8 * budget < cost <= budget


def test_rules_without_a_query_learn_from_both_halves(backbone: Backbone) -> None:
    """3.6.5: the released Reptile saw the training half only."""
    context = make_run_context(backbone, settings(), RunControl())
    sizes = {}
    for name in ("maml", "reptile"):
        initial = InitialParams(context.direct(), stacked([context.initial_prompt(0)]))
        run = make_method(name).source_run(context, initial, SOURCES, 0, "")  # type: ignore[attr-defined]
        sizes[name] = [len(u.support) + len(u.query) for u in run.draws.units]
    assert sizes["maml"] == sizes["reptile"]


def test_a_loss_that_is_no_number_stops_with_evidence(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """3.6.7: NaN stopped the released training silently. Bounds refuse rates that are wild enough, so losses are."""
    losses = PromptObjective.losses
    monkeypatch.setattr(PromptObjective, "losses", lambda *inputs: losses(*inputs) * float("nan"))
    with pytest.raises(TrainingError, match=r"not finite"):
        fit(make_method("multitask"), SOURCES, backbone, settings())


def test_learned_rates_reach_the_target(backbone: Backbone) -> None:
    prior = fitted(backbone, "meta_sgd", 8, budget="updates")
    lr_multipliers = prior.params["inner_rate/prompt"]
    assert lr_multipliers.shape == prior.params["prompt"].shape
    assert float((lr_multipliers - 1).abs().max()) > 0.01
    method = make_method("meta_sgd", RATE)
    frozen = Prior(prior.header, {**prior.params, "inner_rate/prompt": torch.zeros_like(lr_multipliers)})
    episode = [make_episode(TARGETS[0], 2, 13)]
    rates = replace(settings(), target=replace(settings().target, learning_rates=(0.1, 0.2)))
    (moved,), (still,) = (adapt(method, episode, backbone, p, rates) for p in (prior, frozen))
    assert torch.equal(still.prompt.params["prompt"], prior.params["prompt"])
    assert moved.trainable == prior.params["prompt"].numel()
    assert still.trainable == 0


def test_a_meta_learned_bank_is_one_option(backbone: Backbone) -> None:
    method = make_method("maml", {**RATE, "parameterisation": "bank"})
    four = replace(settings(), length=4)
    prior = fit(method, SOURCES, backbone, four)
    assert {"bank", "own"} <= set(prior.params)
    episodes = [make_episode(TARGETS[0], 2, 13)]
    assert len(score_on_test(backbone, adapt(method, episodes, backbone, prior, four), limit=4)) == 1
    anil = make_method("maml", {**RATE, "parameterisation": "bank", "inner_names": ["own"]})
    assert set(fit(anil, SOURCES, backbone, four).params) == set(prior.params)


def test_resumed_is_uninterrupted(backbone: Backbone, tmp_path: Any) -> None:
    class Killed(Exception):
        pass

    def killing(stage: str) -> Any:
        def watch(step: int, steps: int, info: Any) -> None:
            if step == 3:
                raise Killed

        return watch

    method = make_method("maml", {**RATE, "budget": "updates", "inner_optimiser": "adam"})
    whole = fit(method, SOURCES, backbone, settings(6))
    with pytest.raises(Killed):
        fit(method, SOURCES, backbone, settings(6), control=RunControl(tmp_path, watch=killing, checkpoint_seconds=0))
    resumed = fit(method, SOURCES, backbone, settings(6), control=RunControl(tmp_path))
    assert torch.equal(resumed.params["prompt"], whole.params["prompt"])


def test_the_published_settings_are_there_but_for_the_inner_rate() -> None:
    for name in ("maml", "fomaml", "reptile"):
        method = make_method(name, published_options(name))
        assert isinstance(method, MetaPromptTuning)
        assert method.inner_rate is None
        assert (method.shots, method.units_per_task, method.units_per_step) == (16, 5, 2)
    assert published_settings("maml", 0.5).source.learning_rates == (1.0,)
    with pytest.raises(SpecError, match=r"no published settings: unknown method 'imaml'"):
        published_options("imaml")
    with pytest.raises(SpecError, match="reptile has no query"):
        make_method("reptile", {"query_size": 4})


def test_a_learning_curve_of_adaptation_at_named_steps(backbone: Backbone) -> None:
    """Speed of adaptation is what meta-learning claims: scores after 0, 1, 2 and 5 steps."""
    eval_steps = replace(settings().target, steps=6, eval_steps=(1, 2, 5), eval_every=0)
    prior = fit(make_method("fomaml", RATE), SOURCES, backbone, settings(2))
    episode = make_episode(TARGETS[0], 2, 13)
    (done,) = adapt(make_method("fomaml", RATE), [episode], backbone, prior, replace(settings(), target=eval_steps))
    assert [p["step"] for p in done.curve if p["dev_nll"] is not None] == [0, 1, 2, 5, 6]

"""BMTPT end to end on a tiny model: its limits are the methods it contains, and its prior says how it lies."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.adaptation.runs import prior_copies
from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.backbone import Backbone
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.evaluate import evaluate, predict, score_ensemble
from promptprior.fit import RunControl, fit, make_run_context
from promptprior.methods import METHODS, make_method
from promptprior.methods.from_sources.bmtpt import Bmtpt
from promptprior.methods.run_context import InitialParams, RunContext
from promptprior.notation import Tensor
from promptprior.objectives.objective import mean_weights
from promptprior.rules.svgd import Svgd, reweighted
from promptprior.tasks.sampling.draws import StratifiedDraws
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, early, short, text_task

SOURCES = [choice_task("yes", always(0)), choice_task("early", early), choice_task("no", always(1), size=16)]
TARGETS = [choice_task("target", always(0)), choice_task("other", early)]
ARMS = ("bmtpt", "bmtpt_chains", "bmtpt_single", "bmtpt_no_prior", "bmtpt_predictive")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("gpt2", torch.float32)


def fitted(backbone: Backbone, settings: Settings | None = None, **options: Any) -> Prior:
    return fit(Bmtpt(**{"particles": 3, **options}), SOURCES, backbone, settings or short())


@pytest.fixture(scope="module")
def prior(backbone: Backbone) -> Prior:
    return fitted(backbone)


def prompts_of(adapted: list[Any]) -> list[Tensor]:
    return [a.prompt.params["prompt"][0] for a in adapted]


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_fits_adapts_and_scores(backbone: Backbone, name: str) -> None:
    method = make_method(name, {} if name == "bmtpt_single" else {"particles": 2})
    made = fit(method, SOURCES, backbone, short())
    episodes = [make_episode(task, 2, seed) for task in TARGETS for seed in (13, 21)]
    done = adapt(method, episodes, backbone, made, short())
    assert len(score_on_test(backbone, done, limit=4)) == 4
    assert made.params["prompt"].shape[0] == {"bmtpt_single": 1}.get(name, 2)
    widths = {a.variant.get("prior_width") for a in done}
    assert widths <= ({None} if name == "bmtpt_no_prior" else {30.0, 300.0})


def test_the_prior_comes_back_with_its_diagnostics(prior: Prior, tmp_path: Path) -> None:
    prior.save_pretrained(tmp_path / "prior")
    found = Prior.from_pretrained(tmp_path / "prior").header.diagnostics
    assert len(found["particle_loss"]) == 3  # type: ignore[arg-type]
    assert found["count"] == 3
    assert {"distances", "kernel", "spread", "directions", "size"} <= set(found["geometry"])  # type: ignore[call-overload]
    assert set(found["forces"]) == {"repulsion_ratio", "kernel", "distance", "spread"}  # type: ignore[call-overload]
    assert min(found["forces"]["repulsion_ratio"]) > 0  # type: ignore[call-overload, index]
    assert found["gradient_cosines"][0][0] == pytest.approx(1, abs=1e-3)  # type: ignore[index]


def test_a_prior_serves_every_arm_with_its_source_stage_and_no_other(
    backbone: Backbone, prior: Prior, tmp_path: Path
) -> None:
    episodes = [make_episode(TARGETS[1], 2, 13)]
    prior.save_pretrained(tmp_path)
    loaded = Prior.from_pretrained(tmp_path)
    arm = adapt(make_method("bmtpt_no_prior", {"particles": 3}), episodes, backbone, loaded, short())
    free = adapt(Bmtpt(particles=3, penalty="none"), episodes, backbone, prior, short())
    assert torch.equal(prompts_of(arm)[0], prompts_of(free)[0])
    assert arm[0].prompt.header.method == "bmtpt_no_prior"
    for other in ("bmtpt_chains", "bmtpt_single", "multitask"):
        with pytest.raises(SpecError, match=f"fitted by 'bmtpt', not '{other}'"):
            adapt(make_method(other), episodes, backbone, prior, short())


def test_equal_source_stages_whatever_targets_do() -> None:
    def stage(name: str, **options: object) -> object:
        return make_method(name, options).source_recipe()

    assert stage("bmtpt", start="best", prior_width=(1.0,), joint_steps=3) == Bmtpt() == stage("bmtpt_no_prior")
    assert stage("bmtpt_no_prior", particles=2) == Bmtpt(particles=2)
    assert len({stage(name) for name in ARMS}) == 3
    assert stage("bmtpt", width=3.0) != Bmtpt()


def test_the_source_loss_falls(prior: Prior) -> None:
    first, *_, last = prior.header.diagnostics["source_loss"]  # type: ignore[misc]
    assert max(last) < min(first)


def test_one_particle_is_descent_as_multitask_does_it_on_stratified_batches(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_start, own_mixture = RunContext.initial_prompt, RunContext.mixture
    monkeypatch.setattr(
        RunContext, "initial_prompt", lambda context, seed, *names, labels=(): own_start(context, seed)
    )  # same for both
    single = fit(make_method("bmtpt_single", {"width": 0.0}), SOURCES, backbone, short())

    def stratified(context: RunContext, sources: Any, seed: int) -> StratifiedDraws:
        mixture = own_mixture(context, sources, seed)
        return StratifiedDraws(mixture.pools, mixture.rates, mixture.batch_size, seed)

    monkeypatch.setattr(RunContext, "mixture", stratified)
    multitask = fit(make_method("multitask"), SOURCES, backbone, short())
    assert torch.equal(single.params["prompt"], multitask.params["prompt"])


LONG = [  # four tasks whose texts have nothing like the same length
    replace(
        task,
        examples={s: tuple(replace(e, text=f"{e.text} " * times) for e in task.split(s)) for s in ("train", "test")},
    )
    for times, task in ((t, choice_task(f"task{t}", early, size=s)) for t, s in ((1, 56), (3, 8), (6, 8), (10, 8)))
]


@pytest.mark.parametrize("budget", ["full", "batch"])
@pytest.mark.parametrize(("mixture", "weighting"), [("uniform", "proportional"), ("proportional", "balanced")])
def test_tasks_count_what_they_should_however_long_their_texts_are(
    backbone: Backbone, budget: Any, mixture: Any, weighting: Any
) -> None:
    method = Bmtpt(particles=3, weighting=weighting, budget=budget)
    context = make_run_context(backbone, short(mixture=mixture, source=Training(200, 12)), RunControl())
    initial = InitialParams(context.direct(), {"prompt": torch.zeros(3, 4, backbone.width)})
    run = method.particle_run(context, initial, context.mixture(LONG, 13), "key")
    assert isinstance(run.rule, Svgd)
    realised = torch.zeros(4, dtype=torch.float64)
    for step in range(200):
        batch = reweighted(run.draws.batch(step), run.rule.task_weights)
        realised.index_add_(0, batch.row_task, mean_weights(batch, 1))
        assert len(set(batch.task_index.tolist())) == 4
    wanted = torch.tensor([0.7, 0.1, 0.1, 0.1] if weighting == "proportional" else [0.25] * 4).double()
    assert ((realised / 200 - wanted).abs() < 0.02).all()


def test_chains_do_not_see_each_other(backbone: Backbone) -> None:
    three = fit(make_method("bmtpt_chains", {"particles": 3}), SOURCES, backbone, short())
    one = fit(make_method("bmtpt_chains", {"particles": 1}), SOURCES, backbone, short())
    torch.testing.assert_close(three.params["prompt"][:1], one.params["prompt"], rtol=1e-3, atol=1e-4)


def test_a_narrow_prior_keeps_the_mean_and_a_wide_one_is_no_prior(backbone: Backbone, prior: Prior) -> None:
    episodes = [make_episode(TARGETS[1], 2, 13)]
    settings = short()
    held = adapt(Bmtpt(particles=3, prior_width=(1e-3,)), episodes, backbone, prior, settings)
    wide = adapt(Bmtpt(particles=3, prior_width=(1e6,)), episodes, backbone, prior, settings)
    free = adapt(Bmtpt(particles=3, penalty="none"), episodes, backbone, prior, settings)
    torch.testing.assert_close(prompts_of(wide)[0], prompts_of(free)[0], rtol=1e-4, atol=1e-5)
    assert held[0].variant == {"prior_width": 1e-3}
    mean = prior.params["prompt"].mean(0)
    moved = [(prompts_of(a)[0] - mean).norm() for a in (held, wide)]
    assert float(moved[0]) <= float(moved[1])


def test_dev_picks_among_widths_and_rates_as_if_each_ran_alone(backbone: Backbone, prior: Prior) -> None:
    episodes = [make_episode(task, 2, 13) for task in TARGETS]
    settings = short(target=Training(4, 4, (0.1, 0.5), eval_every=2))
    both = adapt(Bmtpt(particles=3, prior_width=(1.0, 1e4)), episodes, backbone, prior, settings)
    alone = [adapt(Bmtpt(particles=3, prior_width=(w,)), episodes, backbone, prior, settings) for w in (1.0, 1e4)]
    for e, made in enumerate(both):
        match = alone[(1.0, 1e4).index(made.variant["prior_width"])][e]  # type: ignore[arg-type]
        assert made.learning_rate == match.learning_rate
        torch.testing.assert_close(made.prompt.params, match.prompt.params, rtol=1e-4, atol=1e-5)
        assert made.prompt.header.scores["dev"]["prior_width"] == made.variant["prior_width"]  # type: ignore[index]


@pytest.mark.parametrize("start", ["mean", "weighted", "best", "sampled"])
def test_untrained_targets_stand_at_their_start(backbone: Backbone, prior: Prior, start: str) -> None:
    method = make_method("bmtpt", {"particles": 3, "start": start})
    episodes = [make_episode(TARGETS[0], 2, 13)]
    made = prompts_of(adapt(method, episodes, backbone, prior, short(target=Training(steps=0))))[0]
    particles = prior.params["prompt"]
    is_particle = any(torch.equal(made, p) for p in particles)
    assert is_particle == (start in ("best", "sampled"))
    if start == "mean":
        torch.testing.assert_close(made, particles.mean(0))


def test_targets_together_share_a_prompt_first(backbone: Backbone, prior: Prior) -> None:
    episodes = [make_episode(task, 2, seed) for seed in (13, 21) for task in TARGETS]
    settings = short(target=Training(steps=0))
    joint = prompts_of(adapt(Bmtpt(particles=3, joint_steps=4), episodes, backbone, prior, settings))
    mean = prior.params["prompt"].mean(0)
    ratio = [p / q for p, q in (joint[:2], joint[2:])]
    for r in ratio:  # two prompts of a group differ by a ratio of rank-one matrices, itself of rank one
        singular = torch.linalg.svdvals(r.double())
        assert float(singular[1] / singular[0]) < 1e-3
    assert all(not torch.allclose(p, mean, atol=1e-4) for p in joint)
    assert not torch.allclose(joint[0], joint[2], atol=1e-5)


def test_the_posterior_predictive_is_what_particles_adapted_alone_answer_together(
    backbone: Backbone, prior: Prior, tmp_path: Path
) -> None:
    episodes = [make_episode(task, 2, 13) for task in TARGETS]
    settings = short(target=Training(4, 4, (0.1, 0.5), eval_every=2))
    done = adapt(make_method("bmtpt_predictive", {"particles": 3}), episodes, backbone, prior, settings)
    marks = score_on_test(backbone, done, limit=8)
    for made, mark, episode in zip(done, marks, episodes, strict=True):
        apart = adapt(Bmtpt(particles=3), [episode] * 3, backbone, prior_copies(prior), settings)
        torch.testing.assert_close(made.prompt.params["prompt"], torch.stack(prompts_of(apart)), rtol=1e-4, atol=1e-5)
        together = score_ensemble(backbone, episode.task, [a.prompt for a in apart], limit=8).ensemble
        assert mark.scores == pytest.approx(together, abs=1e-6)
        assert {"nll", "ece", "brier"} <= mark.scores.keys()
        assert made.trainable == 3 * apart[0].trainable
        assert made.dev_score == max(a.dev_score or 0 for a in apart)
    done[0].prompt.save_pretrained(tmp_path / "prompt")
    again = Prompt.from_pretrained(tmp_path / "prompt", backbone.card)
    assert evaluate(again, TARGETS[0], backbone, limit=8).scores == pytest.approx(marks[0].scores, abs=1e-6)
    answers = predict(again, TARGETS[0], backbone, TARGETS[0].split("test")[:8])
    assert all(sum(math.exp(-v) for v in a.choice_nll) == pytest.approx(1) for a in answers)


def test_particles_do_not_answer_free_text_together(backbone: Backbone, prior: Prior) -> None:
    shout = text_task("shout", lambda word: word[:2])
    method = make_method("bmtpt_predictive", {"particles": 3})
    with pytest.raises(SpecError, match="cannot answer task 'shout': its prompts answer together"):
        adapt(method, [make_episode(shout, 2, 13)], backbone, prior, short(target=Training(steps=1)))


def test_spread_is_told_beside_the_start_the_prior_and_an_ensemble(backbone: Backbone) -> None:
    settings, chains = short(), fit(make_method("bmtpt_chains", {"particles": 3}), SOURCES, backbone, short())
    both = fitted(backbone, settings, ensemble=True, repulsion=100.0)
    found: Any = both.header.diagnostics["spread"]
    assert found.keys() == {"start", "particles", "ensemble", "prior"}
    assert found["prior"] == 100.0
    assert found["start"] == pytest.approx(0.5 * 2 / 3, rel=0.1)  # of three particles two have noise of 0.5
    assert found["ensemble"] == pytest.approx(chains.header.diagnostics["spread"]["particles"], rel=1e-3)  # type: ignore[index]
    assert found["particles"] > 1.05 * found["ensemble"]
    plain = fitted(backbone, settings, repulsion=100.0)
    assert torch.equal(plain.params["prompt"], both.params["prompt"])
    assert "ensemble" not in plain.header.diagnostics["spread"]  # type: ignore[operator]
    costs: Any = [p.header.diagnostics["cost"] for p in (plain, both)]
    assert costs[1]["rows"] == 2 * costs[0]["rows"]


def test_agreement_weights_start_a_target_better_where_one_source_interferes(backbone: Backbone) -> None:
    sources = [choice_task(f"yes{i}", always(0)) for i in range(3)] + [choice_task("no", always(1))]
    target = [make_episode(choice_task("target", always(0)), 2, 13)]
    nll, share = {}, {}
    for weighting in ("balanced", "agreement"):
        method = Bmtpt(particles=2, weighting=weighting)  # type: ignore[arg-type]
        prior = fit(method, sources, backbone, short())
        share[weighting] = prior.header.diagnostics["task_weights"][-1]  # type: ignore[index]
        start = adapt(method, target, backbone, prior, short(target=Training(steps=0)))[0]
        nll[weighting] = start.curve[0]["dev_nll"]
    assert share["balanced"] == pytest.approx(0.25)
    assert share["agreement"] < 0.1
    assert nll["agreement"] < 0.8 * nll["balanced"]


def test_one_prompt_can_have_the_updates_of_all_particles(backbone: Backbone) -> None:
    many = fitted(backbone, particles=3).header.diagnostics["cost"]
    long = fit(make_method("multitask_long", {"times": 3}), SOURCES, backbone, short()).header.diagnostics
    assert long["cost"]["rows"] == many["rows"]  # type: ignore[index]
    plain = fit(make_method("multitask"), SOURCES, backbone, short()).header.diagnostics
    assert long["source_loss"][0] == plain["source_loss"][0]  # type: ignore[index]


def test_every_particle_adapted_and_averaged(backbone: Backbone, prior: Prior) -> None:
    method = Bmtpt(particles=3)
    episode = make_episode(TARGETS[0], 2, 13)
    done = adapt(method, [episode] * 3, backbone, prior_copies(prior), short())
    made = score_ensemble(backbone, TARGETS[0], [a.prompt for a in done], limit=8)
    assert len(made.members) == 3
    assert {"nll", "ece", "brier"} <= made.ensemble.keys()
    assert made.ensemble["nll"] <= max(one["nll"] for one in made.members) + 1e-9  # Jensen
    assert made.abstention[-1] == (1.0, pytest.approx(made.ensemble["accuracy"]))


@pytest.mark.parametrize("budget", ["steps", "batch"])
def test_a_divided_budget_costs_as_much_as_one_prompt(backbone: Backbone, budget: Any) -> None:
    rows = []
    for particles in (1, 4):
        before = backbone.meter.rows
        made = fitted(backbone, particles=particles, budget=budget)
        cost = made.header.diagnostics["cost"]
        rows.append(cost["rows"])  # type: ignore[index]
        assert backbone.meter.rows > before
    assert rows[1] == rows[0]


@pytest.mark.parametrize("weighting", ["proportional", "counts", "agreement"])
def test_weightings(backbone: Backbone, weighting: Any) -> None:
    found = fitted(backbone, weighting=weighting).header.diagnostics
    shares = torch.tensor(found["task_weights"])
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    assert found["count"] == (80 if weighting == "counts" else 3)
    if weighting != "agreement":
        torch.testing.assert_close(shares, torch.tensor([0.4, 0.4, 0.2]))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"particles": 0}, r"particles 0 \(--options.particles\): expected at least 1"),
        ({"temperature": 0.0}, r"temperature 0.0 \(--options.temperature\): expected more than 0"),
        (
            {"prior_width": ()},
            r"prior width \(\) \(--options.prior-width\): expected at least one number, each more than 0",
        ),
        ({"kernel": "rbff"}, r"rbff"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        make_method("bmtpt", options)


def test_arms_are_methods() -> None:
    assert set(ARMS) <= set(METHODS)

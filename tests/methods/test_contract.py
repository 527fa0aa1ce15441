"""What every method of `METHODS` must hold, one suite for all: pure, seeded, resumable, right together or apart, and
blind to the answers of dev and test.

A method of promptprior without an entry in `OPTIONS` fails: give it options that make it small. Methods of other
packages are in `METHODS` wherever those are installed, so the suite checks them too; `EVERY_METHOD` and `EVERY_PRIOR`
list the checks for tests that call them by hand (tests/outside).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import isfinite
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.runs import initial_adaptation, target_run
from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.backbone import Backbone
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.fit import RunControl, fit, make_run_context
from promptprior.methods import METHODS, Episode, Recipe, make_method
from promptprior.methods.choosing import Choosing
from promptprior.notation import Params
from promptprior.objectives.weight_objective import objective_of
from promptprior.rules.rule import Info, answer
from promptprior.tasks import Example, Task
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, early, text_task


def mostly_late(word: str) -> int:
    """Whether more letters are of the alphabet's second half: mean states tell."""
    return int(sum(letter > "m" for letter in word) > len(word) / 2)


SOURCES = [choice_task("yes", always(0), size=12), choice_task("no", always(1), size=12)]
WITH_CLASSES = [choice_task("first", mostly_late, size=32), choice_task("second", mostly_late, ("on", "off"), size=32)]
CHOICE, FREE = choice_task("target", early), text_task("shout", lambda word: word[:2])
OPTIONS: Mapping[str, Mapping[str, object]] = {
    "zero_shot": {},
    "in_context": {},
    "prefix_tuning": {},
    "context_tuning": {},
    "context_tuning_prompt": {},
    "lora": {"rank": 2},
    "lora_linear": {"rank": 2},
    "bitfit": {},
    "fine_tuning": {},
    "prompt_tuning": {},
    "linear_probe": {},
    "knn": {},
    "constant": {},
    "zero_shot_contextual": {},
    "zero_shot_batch": {},
    "zero_shot_calibrated": {},
    "probe_mixture": {},
    "prompted_linear": {},
    "prompted_mixture": {},
    "in_context_contextual": {},
    "auto": {"candidates": ("zero_shot_contextual", "linear_probe", "prompt_tuning"), "folds": 2},
    "residual_prompt_tuning": {"bottleneck": 4},
    "residual_as_released": {"bottleneck": 4},
    "dept": {"positions": 5},
    "multitask": {},
    "multitask_long": {"times": 2},
    "multitask_linear": {},
    "ridge_prior": {"support": 4, "query": 8},
    "spot": {"probe_steps": 2},
    "prompt_arithmetic": {"probe_steps": 2},
    "attempt": {"probe_steps": 2, "rank": 4},
    "attempt_as_released": {"rank": 4, "temperature": 2.0},
    "mpt": {},
    "mpt_no_distil": {},
    "bmtpt": {"particles": 2, "prior_width": (30.0,)},
    "bmtpt_chains": {"particles": 2, "prior_width": (30.0,)},
    "bmtpt_single": {"prior_width": (30.0,)},
    "bmtpt_no_prior": {"particles": 2},
    "bmtpt_linear": {"particles": 2, "prior_width": (30.0,)},
    "bmtpt_predictive": {"particles": 2, "prior_width": (30.0,)},
    "maml": {"budget": "updates", "units_per_step": 2},
    "fomaml": {"budget": "updates", "units_per_step": 2},
    "reptile": {"budget": "updates", "units_per_step": 2},
    "meta_sgd": {"budget": "updates", "units_per_step": 2},
    "imaml": {"budget": "updates", "units_per_step": 2},
    "tpt": {"bank_size": 6},
    "tpt_as_released": {"bank_size": 6, "retrieve": 2},
    "tpt_static": {"bank_size": 6},
    "tpt_random": {"bank_size": 6},
}
TARGETS_ONLY: Mapping[str, Mapping[str, object]] = {
    "bmtpt": {"start": "best", "penalty": "mixture", "prior_width": (7.0, 9.0), "joint_steps": 2, "low_rank_rate": 0.5},
    "mpt": {"joint_steps": 2},
    "attempt": {"start": "fresh", "probe_steps": 1, "joint_steps": 2},
    "prompt": {"combine": "mean", "top": 1, "scales": (0.5, 1.0), "probe_steps": 1},
    "spot": {"retrieval": "weighted", "top": 1, "probe_steps": 1},
    "tpt": {"freeze_bank": True},
}
"""Options, by the first word of a method's name, that no source stage may depend on."""
WITH_PRIOR = [name for name, recipe in METHODS.items() if recipe.needs_sources]
ONE_OF_EACH_CLASS = {type(METHODS[name]): name for name in reversed(list(METHODS))}.values()
RATES = (0.01, 0.5)


def settings(**changes: object) -> Settings:
    source = Training(steps=5, batch_size=4, learning_rates=(0.5,), schedule="constant")
    target = Training(steps=3, batch_size=8, learning_rates=(0.3,), eval_every=1)
    return Settings(**{"length": 4, "source": source, "target": target, **changes})  # type: ignore[arg-type]


def with_rates(*rates: float) -> Settings:
    return settings(target=replace(settings().target, learning_rates=rates))


@cache
def backbone(dtype: torch.dtype = torch.float32, family: str = "llama") -> Backbone:
    return tiny(family, dtype)


def sources(name: str) -> Sequence[Task]:
    """Tasks that a method can learn from."""
    return WITH_CLASSES if name == "ridge_prior" else SOURCES


def small_method(name: str) -> Recipe:
    """A method with options that make it small."""
    return make_method(name, OPTIONS.get(name))


@dataclass
class Watched:
    """The losses of every stage, and a death at one of a stage's steps."""

    dies_at: int | None = None
    losses: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, stage: str) -> Callable[[int, int, Info], None]:
        def watch(step: int, steps: int, info: Info) -> None:
            self.losses.setdefault(stage, []).append(float(info["loss"].mean()))
            if step == self.dies_at:
                raise KeyboardInterrupt

        return watch


@dataclass(frozen=True)
class Fitted:
    prior: Prior
    folder: Path
    losses: dict[str, list[float]]


@cache
def fit_small(name: str) -> Fitted:
    """The prior of a method, fitted once without interruption."""
    folder, watched = Path(mkdtemp()), Watched()
    prior = fit(small_method(name), sources(name), backbone(), settings(), control=RunControl(folder, watch=watched))
    return Fitted(prior, folder / "prior", watched.losses)


@cache
def episodes(name: str) -> tuple[Episode, ...]:
    """One of ranked choices and one of free text, without what the method cannot answer."""
    both = make_episode(CHOICE, 2, 13), make_episode(FREE, 3, 21)
    return tuple(episode for episode in both if METHODS[name].serves(episode.task) is None)


def adapt_small(name: str, *given: Episode, using: Settings | None = None, prior: Prior | None = None) -> list[Adapted]:
    """Episodes adapted on a float64 model: Adam would make whole steps of float32 noise in gradients near 0."""
    made = small_method(name)
    prior = prior or (fit_small(name).prior if made.needs_sources else None)
    return adapt(made, given, backbone(torch.float64), prior, using or settings())


@cache
def adapt_alone(name: str, place: int = 0) -> Adapted:
    """One of the two episodes, adapted once by itself."""
    return adapt_small(name, episodes(name)[place])[0]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_close(one: Adapted, other: Adapted) -> None:
    assert one.prompt.params.keys() == other.prompt.params.keys()
    for name, value in one.prompt.params.items():
        torch.testing.assert_close(value, other.prompt.params[name], rtol=2e-4, atol=2e-5, msg=name)
    assert (one.learning_rate, one.best_step) == (other.learning_rate, other.best_step)


def test_every_method_has_options_in_this_suite() -> None:
    own = {name for name, recipe in METHODS.items() if type(recipe).__module__.startswith("promptprior.")}
    assert OPTIONS.keys() == own
    assert all(make_method(name).name == name for name in METHODS)


@pytest.mark.parametrize("name", [n for n in METHODS if n not in WITH_PRIOR])
def test_methods_without_a_prior_refuse_to_fit(name: str) -> None:
    with pytest.raises(SpecError, match=f"method '{name}' has no prior to fit"):
        fit(make_method(name), SOURCES, backbone(), settings())


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_fitting_lowers_the_loss_of_the_sources(name: str) -> None:
    """In every stage: a distilled loss and its teachers' are of different size."""
    for stage, losses in fit_small(name).losses.items():
        assert sum(losses[-2:]) < sum(losses[:2]), stage


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_what_only_targets_see_changes_no_prior(name: str) -> None:
    """Neither target settings nor the options that `source_recipe` resets: the recipe's own `fit` is asked."""
    options = {**OPTIONS.get(name, {}), **TARGETS_ONLY.get(name.split("_")[0], {})}
    made = make_method(name, {k: v for k, v in options.items() if (name, k) != ("bmtpt_no_prior", "penalty")})
    context = make_run_context(backbone(), settings(target=Training(steps=1, learning_rates=(0.1, 0.2))), RunControl())
    params = made.source_recipe().fit(context, sources(name), 13).params
    assert made.source_recipe() == small_method(name).source_recipe() == made.source_recipe().source_recipe()
    assert params.keys() == fit_small(name).prior.params.keys()
    assert all(torch.equal(value, params[n]) for n, value in fit_small(name).prior.params.items())


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_a_killed_fit_comes_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Which also says: the same seed gives the same bytes, and fitting leaves what it is given as it was."""
    expected = files_of(fit_small(name).folder)
    made = small_method(name)
    with pytest.raises(KeyboardInterrupt):
        fit(
            made,
            sources(name),
            backbone(),
            settings(),
            control=RunControl(tmp_path, watch=Watched(dies_at=2), checkpoint_seconds=0),
        )
    assert not (tmp_path / "prior").exists()
    fit(made, sources(name), backbone(), settings(), control=RunControl(tmp_path))
    assert files_of(tmp_path / "prior") == expected


@pytest.mark.parametrize("name", WITH_PRIOR)
def test_another_seed_gives_another_prior(name: str) -> None:
    few = settings(source=replace(settings().source, steps=1))
    one, other = (fit(small_method(name), sources(name), backbone(), few, seed=s).params for s in (13, 21))
    assert any(not torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", METHODS)
def test_episodes_together_equal_episodes_apart(name: str) -> None:
    together = adapt_small(name, *episodes(name))
    for place, one in enumerate(together):
        assert_close(one, adapt_alone(name, place))
        assert one.episode == episodes(name)[place]


@pytest.mark.parametrize("name", METHODS)
def test_adapting_changes_neither_model_nor_prior_and_comes_to_the_same_twice(name: str) -> None:
    model = backbone(torch.float64).frozen.model
    weights = {n: w.clone() for n, w in model.state_dict().items()}
    prior = fit_small(name).prior if METHODS[name].needs_sources else None
    kept = {n: v.clone() for n, v in prior.params.items()} if prior else {}
    one, two = adapt_alone(name).prompt.params, adapt_small(name, episodes(name)[0])[0].prompt.params
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert prior is None or all(torch.equal(v, kept[n]) for n, v in prior.params.items())
    assert all(torch.equal(w, weights[n]) for n, w in model.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_the_cost_of_a_prompt_is_all_that_the_backbone_read_for_it(name: str) -> None:
    """Probes, networks and joint stages before the episode's own training included."""
    meter = backbone(torch.float64).meter
    rows, tokens = meter.rows, meter.tokens
    made = adapt_small(name, episodes(name)[0])[0]
    assert (made.cost.rows, made.cost.tokens) == (meter.rows - rows, meter.tokens - tokens)


@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_with_folds_all_shots_teach_and_no_answer_of_the_test_split_does(name: str) -> None:
    """And the cost is still all that the backbone read."""
    episode, using, meter = episodes(name)[0], settings(folds=2), backbone(torch.float64).meter
    rows, tokens = meter.rows, meter.tokens
    [made] = adapt_small(name, episode, using=using)
    assert (made.cost.rows, made.cost.tokens) == (meter.rows - rows, meter.tokens - tokens)
    assert {a.example.id for a in made.out_of_fold} == {e.id for e in (*episode.shots.train, *episode.shots.dev)}
    everything = replace(episode.shots, train=(*episode.shots.train, *episode.shots.dev))
    scrambled = replace(with_other_answers(replace(episode, shots=everything)), shots=episode.shots)
    assert scrambled.task.split("test") != episode.task.split("test")
    [blind] = adapt_small(name, scrambled, using=using)
    assert all(torch.equal(value, blind.prompt.params[n]) for n, value in made.prompt.params.items())
    assert made.out_of_fold == blind.out_of_fold


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH_CLASS if METHODS[name].trains])
def test_a_killed_adaptation_comes_to_the_same(name: str, tmp_path: Path) -> None:
    """Whatever a method draws in a step (dropout, particles) is drawn again."""
    prior = fit_small(name).prior if METHODS[name].needs_sources else None
    inputs = (small_method(name), episodes(name)[:1], backbone(torch.float64), prior, settings())
    with pytest.raises(KeyboardInterrupt):
        adapt(*inputs, RunControl(tmp_path, watch=Watched(dies_at=2), checkpoint_seconds=0))
    [again] = adapt(*inputs, RunControl(tmp_path))
    assert all(torch.equal(value, again.prompt.params[n]) for n, value in adapt_alone(name).prompt.params.items())


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_shots_does_not_matter_where_every_step_sees_them_all(name: str) -> None:
    episode = episodes(name)[0]
    shots = replace(episode.shots, train=episode.shots.train[::-1], dev=episode.shots.dev[::-1])
    backwards = replace(episode, shots=shots)
    assert episode.shots.train != backwards.shots.train
    assert_close(adapt_alone(name), adapt_small(name, backwards)[0])


@pytest.mark.parametrize("name", [n for n, recipe in METHODS.items() if recipe.trains and recipe.head == "verbalizer"])
def test_dev_picks_the_rate_as_if_each_had_been_tried_alone(name: str) -> None:
    picked = adapt_small(name, episodes(name)[0], using=with_rates(*RATES))[0]
    apart = [adapt_small(name, episodes(name)[0], using=with_rates(rate))[0] for rate in RATES]

    def merit(one: Adapted) -> tuple[float, float]:
        judged = next(p for p in one.curve if p["step"] == one.best_step)
        return one.dev_score or 0.0, -judged["dev_nll"]

    assert picked.learning_rate in [one.learning_rate for one in apart]
    assert merit(picked) == pytest.approx(max(map(merit, apart)), rel=1e-4)
    best = max(apart, key=merit)
    if best.best_step > 0:  # at step 0 all rates are the same
        assert_close(picked, best)


@pytest.mark.parametrize("name", METHODS)
def test_priors_and_prompts_come_back_from_their_folders(name: str, tmp_path: Path) -> None:
    if METHODS[name].needs_sources:
        loaded = Prior.from_pretrained(fit_small(name).folder, backbone().card)
        assert loaded.header.method == name
        assert_close(adapt_small(name, episodes(name)[0], prior=loaded)[0], adapt_alone(name))
    made = adapt_alone(name)
    made.prompt.save_pretrained(tmp_path / "prompt")
    again = replace(made, prompt=Prompt.from_pretrained(tmp_path / "prompt", backbone().card))
    one, two = (score_on_test(backbone(), [a], limit=6)[0] for a in (made, again))
    assert one == two
    assert again.prompt.header.method == name


def with_other_answers(episode: Episode) -> Episode:
    """The episode with wrong answers in dev, in test, and wherever else a method must not look."""
    shown = {example.id for example in episode.shots.train}

    def changed(example: Example) -> Example:
        if example.id in shown:
            return example
        if example.label is None:
            text = f"{example.target[::-1]}!"
            return replace(example, target=text, references=(text,))
        label = (example.label + 1) % len(example.choices)
        return replace(example, target=example.choices[label], label=label)

    examples = {split: tuple(map(changed, rows)) for split, rows in episode.task.examples.items()}
    shots = replace(episode.shots, dev=tuple(map(changed, episode.shots.dev)))
    return replace(episode, task=replace(episode.task, examples=examples), shots=shots)


def trajectory(name: str, episode: Episode) -> list[Params]:
    """The params that a method's `init` returns, and those that answer after each step: all before dev selects."""
    made, model = small_method(name), backbone(torch.float64)
    context = make_run_context(model, settings(), RunControl())
    init = initial_adaptation(made, context, [fit_small(name).prior] if made.needs_sources else [], [episode])
    objective = objective_of(model, init.parameterisation)
    rates = init.learning_rates or settings().target.learning_rates
    run = target_run(made, context, objective, init, [episode], rates if made.trains else (1.0,))
    state = run.rule.init(run.params)
    params = [dict(init.params), answer(run.rule, state)]
    for step in range(run.steps):
        state, _ = run.rule.step(state, run.draws.batch(step), objective)
        params.append(answer(run.rule, state))
    return params


@pytest.mark.parametrize("name", [name for name, recipe in METHODS.items() if not isinstance(recipe, Choosing)])
def test_nothing_is_learned_from_answers_of_dev_or_test(name: str) -> None:
    """Dev selects and test is for the end: wrong answers there change neither start nor any step."""
    for episode in episodes(name):
        steps = zip(trajectory(name, episode), trajectory(name, with_other_answers(episode)), strict=True)
        for step, (right, wrong) in enumerate(steps):
            differing = [n for n in right if not torch.equal(right[n], wrong[n])]
            assert not differing, f"{episode.task.name}, {f'step {step - 1}' if step else 'init'}: {differing}"


HEADED = [name for name, recipe in METHODS.items() if recipe.head != "verbalizer" or isinstance(recipe, Choosing)]


@pytest.mark.parametrize("name", HEADED)
def test_what_is_fitted_after_training_does_not_see_test_answers(name: str) -> None:
    """Heads and choices learn from dev shots as well, but a task whose test answers are all wrong gives the same."""
    episode = episodes(name)[0]
    wrong = replace(episode, task=with_other_answers(episode).task)
    one, other = adapt_alone(name).prompt.params, adapt_small(name, wrong)[0].prompt.params
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("family", ["t5", "gemma3", "mistral"])
@pytest.mark.parametrize("name", ONE_OF_EACH_CLASS)
def test_other_families_of_models_are_served(name: str, family: str, tmp_path: Path) -> None:
    """An encoder-decoder, and sliding windows shorter than a prompt and its text."""
    made, model = small_method(name), backbone(family=family)
    few = settings(**{s: replace(getattr(settings(), s), steps=2) for s in ("source", "target")})
    prior = fit(made, sources(name), model, few) if made.needs_sources else None
    one = adapt(made, episodes(name)[:1], model, prior, few)[0]
    assert len(one.curve) == (3 if made.trains else 1)  # step 0 is asked too
    one.prompt.save_pretrained(tmp_path / "prompt")
    again = replace(one, prompt=Prompt.from_pretrained(tmp_path / "prompt", model.card))
    scored, after = (score_on_test(model, [a], limit=6)[0] for a in (one, again))
    assert scored == after
    assert isfinite(scored.nll)


EVERY_METHOD: Sequence[Callable[[str], None]] = (
    test_episodes_together_equal_episodes_apart,
    test_adapting_changes_neither_model_nor_prior_and_comes_to_the_same_twice,
    test_the_cost_of_a_prompt_is_all_that_the_backbone_read_for_it,
    test_the_order_of_shots_does_not_matter_where_every_step_sees_them_all,
    test_dev_picks_the_rate_as_if_each_had_been_tried_alone,
    test_nothing_is_learned_from_answers_of_dev_or_test,
)
"""Checks of every method that trains, by its name. Three more need a folder: a killed adaptation, folders, families."""
EVERY_PRIOR: Sequence[Callable[[str], None]] = (
    test_fitting_lowers_the_loss_of_the_sources,
    test_what_only_targets_see_changes_no_prior,
    test_another_seed_gives_another_prior,
)
"""Checks of every method that learns from sources; `test_a_killed_fit_comes_to_the_same_bytes` also needs a folder."""

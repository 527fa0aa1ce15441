"""Folds against a slow twin: one fold, one rate and one step after the other, and everything chosen in plain Python."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import pytest
import torch

from promptprior.adapt import adapt, make_episode
from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.folds import HeldOut, fold_episodes, jackknife_error
from promptprior.adaptation.runs import initial_adaptation, target_run
from promptprior.artifacts.artifact import Prior
from promptprior.config.mapping import stable_hash
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.evaluate import eval_set_losses, evaluate_requests, make_eval_set, mean_probability
from promptprior.fit import RunControl, make_run_context, source_settings
from promptprior.guard import guarded
from promptprior.methods import AdaptationInit, Episode, Recipe, RunContext, make_method
from promptprior.methods.target_only.prompt_tuning import PromptTuning
from promptprior.notation import Params
from promptprior.objectives.weight_objective import objective_of
from promptprior.parameterisations.registry import folded
from promptprior.rules.rule import Info, answer
from promptprior.tasks.metrics import Prediction, merit, score
from promptprior.tasks.sampling.draws import Shots
from tests.methods.test_contract import CHOICE, FREE, backbone, fit_small, small_method
from tests.world import always, choice_task, text_task

MODEL = backbone(torch.float64)
EASY = choice_task("easy", always(1))
OTHER = choice_task("other", lambda word: int(word[-1] > "m"), choices=("no", "yes", "maybe"))


def settings(folds: int, **changes: object) -> Settings:
    stage: dict[str, Any] = {"steps": 5, "batch_size": 3, "learning_rates": (0.02, 0.8), "eval_every": 2, **changes}
    source = Training(steps=5, batch_size=4, learning_rates=(0.5,), schedule="constant")
    return Settings(length=4, source=source, target=Training(**stage), folds=folds)


def prior_of(method: Recipe) -> Prior | None:
    if not method.needs_sources:
        return None
    return fit_small(method.name).prior


@dataclass(frozen=True)
class Trained:
    """Episodes at one rate: what reads the params, and the params after each step, [E * V, ...] each."""

    objective: Any
    variants: int
    members: int
    path: list[Params]

    def of(self, step: int, rows: Sequence[int]) -> Params:
        return {name: value[list(rows)] for name, value in self.path[step].items()}


def train_slowly(method: Recipe, episodes: Sequence[Episode], using: Settings, rate: float | None = None) -> Trained:
    context = make_run_context(MODEL, using, RunControl())
    prior = prior_of(method)
    init = initial_adaptation(method, context, [prior] * len(episodes) if prior else [], episodes)
    objective = objective_of(MODEL, init.parameterisation)
    run = target_run(method, context, objective, init, episodes, (rate or 1.0,))
    state = run.rule.init(run.params)
    path = [answer(run.rule, state)]
    for step in range(run.steps):
        state, _ = run.rule.step(state, run.draws.batch(step), objective)
        path.append(answer(run.rule, state))
    return Trained(objective, len(init.variants), init.ensemble_size, path)


def rates_of(method: Recipe, using: Settings) -> Sequence[float]:
    context = make_run_context(MODEL, using, RunControl())
    prior, episode = prior_of(method), make_episode(CHOICE, 2, 13)
    init = initial_adaptation(method, context, [prior] if prior else [], [episode])
    return (init.learning_rates or using.target.learning_rates) if method.trains else (1.0,)


def check_against_the_slow_twin(method: Recipe, episodes: Sequence[Episode], using: Settings) -> list[Adapted]:
    """Choice, standard error, answers out of fold and prompts of a joint run equal those of single ones."""
    done = adapt(method, episodes, MODEL, prior_of(method), using)
    rates, steps = rates_of(method, using), range(using.target.steps + 1) if method.trains else range(1)
    asked = [step for step in steps if step in (0, steps[-1]) or step % using.target.dev_every == 0]
    together = [[e] for e in range(len(episodes))] if method.adapts_one_by_one else [range(len(episodes))]
    parts = [fold_episodes(episode, using.folds) for episode in episodes]
    [count] = {len(own) for own in parts}
    for group in together:
        runs = {
            (f, rate): train_slowly(method, [parts[e][f] for e in group], using, rate)
            for f, rate in product(range(count), rates)
        }
        chosen: dict[int, list[tuple[int, float, int]]] = {}
        for place, e in enumerate(group):
            ways: dict[tuple[int, float, int], tuple[float, float]] = {}
            one = runs[0, rates[0]]
            for v, rate, step in product(range(one.variants), rates, asked):
                scores, nlls = [], []
                for f in range(count):
                    made = runs[f, rate]
                    task, dev = episodes[e].task, parts[e][f].shots.dev
                    params = made.of(step, [place * made.variants + v])
                    eval_sets = [make_eval_set(made.objective, task, dev)]
                    result = evaluate_requests(made.objective, params, eval_sets, generate=False)[0].result
                    scores.append(merit(task.metrics[0], result.scores[task.metrics[0]]) if result.scores else 0.0)
                    nlls.append(result.nll)
                ways[v, rate, step] = round(mean(scores), 9), -mean(nlls)
            part = one.variants // one.members
            chosen[e] = [
                max((w for w in ways if w[0] // part == m), key=lambda w: (*ways[w], -w[2])) for m in range(one.members)
            ]
            best = max(chosen[e], key=ways.__getitem__)
            assert done[e].best_step == best[2]
            assert done[e].learning_rate == (pytest.approx(best[1]) if method.trains else None)
            if episodes[e].task.is_choice:
                expected = merit(episodes[e].task.metrics[0], ways[best][0])
                assert done[e].dev_score == pytest.approx(expected, abs=1e-6)

            held = {}
            for f in range(count):
                task, dev = episodes[e].task, parts[e][f].shots.dev
                by_member = []
                for v, rate, step in chosen[e]:
                    made = runs[f, rate]
                    params = made.of(step, [place * made.variants + v])
                    by_member += eval_set_losses(made.objective, params, [make_eval_set(made.objective, task, dev)])
                for x, example in enumerate(dev):
                    of_members = [losses[x] for losses in by_member]
                    held[example.id] = of_members[0] if len(of_members) == 1 else mean_probability(of_members)
            shots = episodes[e].shots
            every = (*shots.train, *shots.dev) if using.folds > 1 else shots.dev
            assert [a.example for a in done[e].out_of_fold] == list(every)
            for a in done[e].out_of_fold:
                assert a.target_nll == pytest.approx(held[a.example.id], rel=1e-6)

        every_shot = [(*episodes[e].shots.train, *episodes[e].shots.dev) for e in group]
        wholes = [replace(episodes[e], shots=Shots(s, s)) for e, s in zip(group, every_shot, strict=True)]
        for place, e in enumerate(group):
            rows = []
            for v, rate, step in chosen[e]:
                made = train_slowly(method, wholes, using, rate)
                rows.append(made.of(step, [place * made.variants + v]))
            joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
            context = make_run_context(MODEL, using, RunControl())
            prior = prior_of(method)
            form = initial_adaptation(method, context, [prior] if prior else [], [wholes[place]]).parameterisation
            for name, value in folded(form, joined)[1].items():
                torch.testing.assert_close(done[e].prompt.params[name], value, rtol=1e-6, atol=1e-6)
    return done


CASES: Mapping[str, Mapping[str, object]] = {
    "prompt_tuning": {},
    "lora": {},
    "zero_shot": {},
    "in_context": {},
    "bmtpt": {"prior_width": (7.0, 90.0), "particles": 2},
    "bmtpt_predictive": {"prior_width": (7.0, 90.0), "particles": 2},
    "tpt": {},
    "mpt": {},
}


def method_of(name: str, options: Mapping[str, object] | None = None) -> Recipe:
    return replace(small_method(name), **{**CASES.get(name, {}), **(options or {})})  # type: ignore[arg-type]


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_folds_equal_the_slow_twin(name: str, folds: int) -> None:
    method = method_of(name)
    episodes = [make_episode(OTHER, 3, 13), make_episode(FREE, 3, 21)]
    check_against_the_slow_twin(method, [e for e in episodes if method.serves(e.task) is None], settings(folds))


def test_targets_that_train_jointly_do_so_fold_by_fold() -> None:
    """Every fold's group holds the same fold of the others: none learns, shared, what another asks."""
    episodes = [make_episode(CHOICE, 3, 13), make_episode(OTHER, 2, 13)]
    for name in ("mpt", "bmtpt"):
        check_against_the_slow_twin(method_of(name, {"joint_steps": 2}), episodes, settings(3))


def test_an_average_of_the_path_answers_in_folds_and_refit() -> None:
    episodes = [make_episode(CHOICE, 3, 13)]
    plain = adapt(make_method("prompt_tuning"), episodes, MODEL, None, settings(2))[0]
    for kind in ("ema", "swa"):
        done = check_against_the_slow_twin(make_method("prompt_tuning"), episodes, settings(2, average=kind))[0]
        assert done.curve != plain.curve


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_averages_are_of_the_params_along_the_path(kind: str) -> None:
    episode = make_episode(CHOICE, 3, 13)
    path = train_slowly(make_method("prompt_tuning"), [episode], settings(0), 0.8).path
    ours = train_slowly(make_method("prompt_tuning"), [episode], settings(0, average=kind), 0.8).path[-1]["prompt"]
    prompts = [params["prompt"] for params in path]
    expected = torch.stack(prompts[3:]).mean(0)  # of 5 steps the third and later ones
    if kind == "ema":
        expected = prompts[1]
        for prompt in prompts[2:]:
            expected = 0.9 * expected + 0.1 * prompt
    torch.testing.assert_close(ours, expected)


def test_source_averages_are_refused() -> None:
    with pytest.raises(SpecError, match=r"source average swa \(--source\.average\): expected none"):
        replace(settings(0), source=Training(average="swa"))


@dataclass(frozen=True)
class Wavering(PromptTuning):
    """More variants for more examples."""

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        count = len(episodes[0].shots.train)
        init = super().init(context, priors, [episode for episode in episodes for _ in range(count)])
        return replace(init, variants=[{"place": place} for place in range(count)])


def test_variants_that_come_and_go_with_the_examples_are_refused() -> None:
    with pytest.raises(SpecError, match=r"init returned 4 variants .* and 8 for all of them; .* \(--folds\)"):
        adapt(Wavering(), [make_episode(CHOICE, 2, 13)], MODEL, None, settings(1))


@dataclass(frozen=True)
class OneByOne(PromptTuning):
    """Prompt tuning whose episodes cannot be copies of one run."""

    adapts_one_by_one: ClassVar[bool] = True


@pytest.mark.parametrize("patience", [None, 1])
def test_folds_in_runs_of_their_own_choose_and_answer_alike(patience: int | None) -> None:
    using = settings(3, patience=patience, eval_every=1, steps=8)
    episodes = [make_episode(OTHER, 3, 13), make_episode(FREE, 3, 21)]
    joint, apart = (adapt(method, episodes, MODEL, None, using) for method in (PromptTuning(), OneByOne()))
    for one, other in zip(joint, apart, strict=True):
        assert (one.best_step, one.learning_rate) == (other.best_step, other.learning_rate)
        assert one.dev_score == pytest.approx(other.dev_score, abs=1e-5)
        torch.testing.assert_close(one.prompt.params, other.prompt.params)
        for a, b in zip(one.out_of_fold, other.out_of_fold, strict=True):
            assert a.example == b.example
            assert a.target_nll == pytest.approx(b.target_nll, rel=1e-6)


def test_episodes_with_folds_together_equal_episodes_apart() -> None:
    episodes = [make_episode(OTHER, 3, 13), make_episode(CHOICE, 1, 21), make_episode(FREE, 3, 21)]
    using = settings(5, patience=1)  # the second has four examples, hence four folds
    together = adapt(make_method("prompt_tuning"), episodes, MODEL, None, using)
    for episode, one in zip(episodes, together, strict=True):
        [alone] = adapt(make_method("prompt_tuning"), [episode], MODEL, None, using)
        assert (one.best_step, one.learning_rate, one.dev_score) == (
            alone.best_step,
            alone.learning_rate,
            alone.dev_score,
        )
        torch.testing.assert_close(one.prompt.params, alone.prompt.params)


@pytest.mark.parametrize("death", ["target", "refit-target", "between"])
def test_folds_killed_and_resumed_come_to_the_same_bytes(
    death: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs: tuple[Any, ...] = (make_method("prompt_tuning"), [make_episode(EASY, 2, 13)], MODEL, None)
    using = settings(2, learning_rates=(0.8,), eval_every=1)
    [expected] = adapt(*inputs, using)
    assert expected.best_step > 0, "the refit must have steps to die in"

    def watch_stage(stage: str) -> Callable[[int, int, Info], None]:
        def watch(step: int, steps: int, info: Info) -> None:
            if stage == death and step == 1:
                raise KeyboardInterrupt

        return watch

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if death == "between":
            patched.setattr(import_module("promptprior.adaptation.refit"), "answer_held_out", die)
        with pytest.raises(KeyboardInterrupt):
            adapt(*inputs, using, RunControl(tmp_path, watch=watch_stage, checkpoint_seconds=0))
    [again] = adapt(*inputs, using, RunControl(tmp_path))
    for one, name in ((expected, "one"), (again, "other")):
        one.prompt.save_pretrained(tmp_path / name)
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert one == other
    assert expected.out_of_fold == again.out_of_fold


@pytest.mark.parametrize("folds", [2, 3, 5, 100])
@pytest.mark.parametrize("task", [OTHER, text_task("said", str.upper)], ids=["choices", "text"])
def test_folds_are_stratified_and_hold_every_example_once(task: Any, folds: int) -> None:
    episode = make_episode(task, 4, 13)
    both = [*episode.shots.train, *episode.shots.dev]
    parts = fold_episodes(episode, folds)
    assert len(parts) == min(folds, len(both))
    assert sorted(e.id for part in parts for e in part.shots.dev) == sorted(e.id for e in both)
    for part in parts:
        assert {e.id for e in part.shots.train} == {e.id for e in both} - {e.id for e in part.shots.dev}
        assert {e.label for e in part.shots.train} == {e.label for e in both}
    sizes = [len(part.shots.dev) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for label in {e.label for e in both}:
        counts = [sum(e.label == label for e in part.shots.dev) for part in parts]
        assert max(counts) - min(counts) <= 1
    backwards = replace(episode, shots=replace(episode.shots, train=episode.shots.dev, dev=episode.shots.train))
    assert [{e.id for e in p.shots.dev} for p in fold_episodes(backwards, folds)] == [
        {e.id for e in p.shots.dev} for p in parts
    ]
    other = fold_episodes(replace(episode, seed=21), folds)
    assert folds == 100 or [p.shots.dev for p in other] != [p.shots.dev for p in parts]


@pytest.mark.parametrize("count", [2, 7, 24])
def test_the_standard_error_of_accuracy_is_the_closed_form(count: int) -> None:
    examples = OTHER.split("train")[:count]
    g = torch.Generator().manual_seed(count)
    answers = [HeldOut(e, tuple(torch.rand(3, generator=g).tolist()), (1, 1, 1)) for e in examples]
    right = torch.tensor([float(min(range(3), key=a.target_nll.__getitem__) == a.example.label) for a in answers])
    assert jackknife_error(OTHER, answers) == pytest.approx(float(right.double().std() / count**0.5))
    assert jackknife_error(OTHER, answers[:1]) is None
    assert jackknife_error(FREE, [replace(answers[0], example=FREE.split("train")[0])] * 2) is None


def test_the_standard_error_of_other_metrics_leaves_out_one_example_after_the_other() -> None:
    task = replace(OTHER, metrics=("macro_f1",))
    g = torch.Generator().manual_seed(3)
    answers = [HeldOut(e, tuple(torch.rand(3, generator=g).tolist()), (1, 1, 1)) for e in task.split("train")[:9]]
    values = []
    for left_out in range(9):
        rest = [a for place, a in enumerate(answers) if place != left_out]
        guesses = [min(range(3), key=a.target_nll.__getitem__) for a in rest]
        predictions = [Prediction(a.example.id, "", g, a.target_nll) for a, g in zip(rest, guesses, strict=True)]
        values.append(score(task, [a.example for a in rest], predictions)["macro_f1"])
    expected = (8 * torch.tensor(values, dtype=torch.float64).var(correction=0)).sqrt()
    assert jackknife_error(task, answers) == pytest.approx(float(expected))


def test_dev_is_asked_after_a_tenth_of_the_steps_unless_a_number_says_otherwise() -> None:
    assert [Training(steps=steps).dev_every for steps in (0, 1, 5, 10, 15, 60, 101)] == [1, 1, 1, 1, 2, 6, 11]
    assert [Training(steps=60, eval_every=every).dev_every for every in (0, 7)] == [0, 7]
    using = settings(0, steps=20, eval_every=None)
    done = adapt(make_method("prompt_tuning"), [make_episode(CHOICE, 2, 13)], MODEL, None, using)[0]
    assert [point["step"] for point in done.curve if point["dev_nll"] is not None] == list(range(0, 21, 2))


def test_folds_are_no_part_of_older_hashes_nor_of_priors() -> None:
    assert stable_hash(settings(0)) != stable_hash(settings(2)) != stable_hash(settings(1))
    assert stable_hash(source_settings(settings(0))) == stable_hash(source_settings(settings(2, average="swa")))
    few = replace(settings(0), dev_limit=4)
    assert stable_hash(source_settings(settings(0))) == stable_hash(source_settings(few))
    older = Settings(source=Training(steps=3, eval_every=0))
    assert stable_hash(older) == stable_hash(Settings(source=Training(steps=3)))
    with pytest.raises(SpecError, match=r"folds -1 \(--folds\): expected at least 0"):
        settings(-1)


def test_the_guard_judges_by_answers_out_of_fold() -> None:
    """Each candidate's prompt has learned from dev: its own answers to dev would flatter it."""
    method = method_of("multitask")
    episodes = [make_episode(CHOICE, 3, 13)]
    [verdict] = guarded(method, episodes, MODEL, prior_of(method), settings(3))
    for candidate in verdict.candidates:
        held = candidate.adapted.out_of_fold
        assert len(candidate.each_nll) == len(held) == 12
        logits = -torch.tensor([a.target_nll for a in held], dtype=torch.float64)
        labels = torch.tensor([a.example.label for a in held])
        expected = torch.nn.functional.cross_entropy(logits, labels)
        assert candidate.nll == pytest.approx(float(expected))
        right = (logits.argmax(1) == labels).double().mean()
        assert candidate.score == pytest.approx(float(right))
    assert "12 dev examples" in verdict.says

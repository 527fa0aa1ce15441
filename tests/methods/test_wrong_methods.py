"""Wrong methods: what the contract suite catches, and what `adapt` says of those whose parts do not fit together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from promptprior.adapt import adapt, make_episode
from promptprior.artifacts.artifact import Prior
from promptprior.errors import SpecError
from promptprior.fit import fit
from promptprior.methods import METHODS, AdaptationInit, Episode, InitialParams, Recipe, RunContext, make_method
from promptprior.methods.options import fact
from promptprior.parameterisations.direct import Direct
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool
from tests.methods import test_contract as contract

D, L = contract.backbone().width, contract.settings().length


@dataclass(frozen=True)
class StartsFromTestAnswer(Recipe):
    """Its start is shifted by the embedding of the first answer of the test split."""

    name: str = fact("starts_from_test_answer")

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        frozen, params = context.backbone.frozen, context.episode_prompts(episodes)
        answers = [frozen.tokenizer(e.task.split("test")[0].target).input_ids[:1] for e in episodes]
        return AdaptationInit(context.direct(), {"prompt": params["prompt"] + frozen.embed(torch.tensor(answers))})


@dataclass(frozen=True)
class LearnsDevAnswers(Recipe):
    """Its start has been trained on the dev shots, by the context's own loop, for two steps."""

    name: str = fact("learns_dev_answers")

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        start = InitialParams(context.direct(), context.episode_prompts(episodes))
        pools = [Pool(context.tokens(e.task, e.shots.dev), copy=c) for c, e in enumerate(episodes)]
        draws = EpisodeDraws(pools, 4, [e.seed for e in episodes])
        key = context.key(self, *(e.key for e in episodes))
        stage = replace(context.settings.target, steps=2)
        return AdaptationInit(context.direct(), context.train(context.descent(key, stage, start, draws), "dev").last)


@dataclass(frozen=True)
class PullsToDevAnswers(Recipe):
    """Its start is blind, but a penalty pulls every step towards the embedding of a dev answer."""

    name: str = fact("pulls_to_dev_answers")

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        frozen = context.backbone.frozen
        answers = [frozen.tokenizer(e.shots.dev[0].target).input_ids[:1] for e in episodes]
        target = frozen.embed(torch.tensor(answers)).detach()  # [E, 1, D]
        return AdaptationInit(
            context.direct(),
            context.episode_prompts(episodes),
            penalty=lambda params: (params["prompt"] - target).square().sum((1, 2)),
        )


@pytest.mark.parametrize(
    ("method", "where"),
    [(StartsFromTestAnswer(), "init"), (LearnsDevAnswers(), "init"), (PullsToDevAnswers(), "step 1")],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_suite_catches_a_method_that_reads_answers_it_must_not(
    method: Recipe, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, method.name, method)
    with pytest.raises(AssertionError, match=rf"target, {where}: \['prompt'\]"):
        contract.test_nothing_is_learned_from_answers_of_dev_or_test(method.name)
    # Nothing else in the suite asks for it.
    contract.test_episodes_together_equal_episodes_apart(method.name)
    contract.test_the_cost_of_a_prompt_is_all_that_the_backbone_read_for_it(method.name)


def returning(make: Callable[[], Any]) -> Recipe:
    """A method named "wrong" whose `init` returns what `make` makes."""

    @dataclass(frozen=True)
    class Wrong(Recipe):
        name: str = fact("wrong")

        def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> Any:
            return make()

    return Wrong()


def prompt_of(*shape: int, **other: Any) -> Callable[[], AdaptationInit]:
    """What makes zeros of a shape for a direct parameterisation of the settings' length."""
    return lambda: AdaptationInit(Direct(L, D), {"prompt": torch.zeros(*shape)}, **other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, r"None; expected an AdaptationInit \(promptprior.methods\)"),
        (lambda: (Direct(L, D), {}), r"\(Direct\(.*; expected an AdaptationInit"),
        (prompt_of(L, D), rf".*params\['prompt'\]: got shape \[{L}, {D}\]; expected a leading copies axis of 2"),
        (prompt_of(1, L, D), rf".*\['prompt'\]: got shape \[1, {L}, {D}\]; expected a leading copies axis of 2 \(2 ep"),
        (prompt_of(2, L, D, variants=({}, {})), r".*expected a leading copies axis of 4 \(2 episodes x 2 variants\)"),
        (prompt_of(2, L, D, variants=()), "0 variants and ensemble_size 1; expected at least one"),
        (prompt_of(2, L, D, ensemble_size=2), "1 variants and ensemble_size 2; expected .* each member"),
        (prompt_of(2, L, D + 1), rf".*width: got prompts \[2, {L}, {D + 1}\]; expected .*the backbone's width"),
        (
            lambda: AdaptationInit(Direct(L, D), {"prompt": torch.zeros(2, L, D, dtype=torch.int64)}),
            r".*params\['prompt'\]: got torch\.int64; expected a tensor of floating-point numbers",
        ),
        (
            lambda: AdaptationInit(Direct(L + 1, D), {"prompt": torch.zeros(2, L, D)}),
            rf".*length: got prompts \[2, {L}, {D}\]; expected .*length {L + 1}.*as the form's `length` says",
        ),
        (prompt_of(2, L, D, lr_multipliers={"promt": 0.0}), "lr_multipliers for promt; its params are prompt"),
        (lambda: AdaptationInit(Direct(L, D), {"promt": torch.zeros(2, L, D)}), ".*KeyError: 'prompt'; params"),
        (lambda: AdaptationInit(Direct(L, D), {}), ".*params: got an empty dict; expected a dict of tensors"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_one_sentence_naming_method_and_field(make: Any, message: str) -> None:
    episodes = [make_episode(contract.CHOICE, 2, seed) for seed in (13, 21)]
    with pytest.raises(SpecError, match=f"^method 'wrong': init returned {message}"):
        adapt(returning(make), episodes, contract.backbone(), settings=contract.settings())


class NoRecipe:
    """What a stranger might write first."""

    name = "wrong"

    def init(self, context: object, priors: object, episodes: object) -> None:
        return None


@pytest.mark.parametrize("value", [NoRecipe(), NoRecipe, StartsFromTestAnswer, "prompt_tuning"])
def test_what_is_no_recipe_is_refused_under_its_name_and_by_the_verbs(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "wrong", value)
    with pytest.raises(SpecError, match=r"^method 'wrong' is .*; expected a Recipe \(promptprior.methods\) whose name"):
        make_method("wrong")
    episode = make_episode(contract.CHOICE, 2, 13)
    with pytest.raises(SpecError, match=r"^method .*: expected a Recipe \(promptprior.methods\)"):
        adapt(value, [episode], contract.backbone())
    with pytest.raises(SpecError, match=r"^method .*: expected a Recipe \(promptprior.methods\)"):
        fit(value, contract.SOURCES, contract.backbone())


def test_a_recipe_under_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mine", StartsFromTestAnswer())
    with pytest.raises(SpecError, match=r"method 'mine' is StartsFromTestAnswer.* whose name is 'mine'"):
        make_method("mine")
    monkeypatch.setitem(METHODS, "mine", StartsFromTestAnswer(name="mine"))
    assert make_method("mine").name == "mine"

"""Blends among other prompts: they answer as their members say, and members share what is read."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.adaptation.adapted import Adapted
from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.blending import blended
from promptprior.backbone import Backbone
from promptprior.errors import DataError
from promptprior.evaluate import evaluate, predict
from promptprior.methods import make_method
from promptprior.tasks.task import Example
from tests.backbone.tiny import tiny
from tests.world import choice_task, early, short, text_task

TARGET = choice_task("words", early, size=24)
SEEDS = (13, 21, 42)
BY_WORDS = ("zero_shot_calibrated", "zero_shot_contextual")  # read likelihoods alone
BY_STATES = ("zero_shot_calibrated", "linear_probe", "prompted_linear", "prompted_mixture", "prompt_tuning")
WEIGHTS = {2: (0.25, 0.75), 5: (0.1, 0.2, 0.3, 0.15, 0.25)}
TEMPERATURES = (2.0, 0.5, 1.0, 4.0, 1.5)


@cache
def backbone() -> Backbone:
    return tiny("llama")  # in float64


@cache
def adapted(name: str, seed: int) -> Adapted:
    [one] = adapt(make_method(name), [make_episode(TARGET, 4, seed)], backbone(), None, short())
    return one


def blend(names: Sequence[str], seed: int) -> Adapted:
    members = [adapted(name, seed) for name in names]
    header, prompts = members[0].prompt.header, [member.prompt for member in members]
    prompt = blended(header, prompts, WEIGHTS[len(names)], TEMPERATURES[: len(names)])
    return replace(members[0], prompt=prompt)


def tokens_of(many: Sequence[Adapted]) -> int:
    """Tokens that are read while these are scored together."""
    before = backbone().meter.tokens
    score_on_test(backbone(), many)
    return backbone().meter.tokens - before


def by_hand(names: Sequence[str], seed: int, examples: Sequence[Example]) -> torch.Tensor:
    """Mean probabilities [n, K] of members that are asked one by one."""
    total = torch.zeros(len(examples), 2, dtype=torch.float64)
    for name, weight, temperature in zip(names, WEIGHTS[len(names)], TEMPERATURES, strict=False):
        answers = predict(adapted(name, seed).prompt, TARGET, backbone(), examples)
        nll = torch.tensor([a.choice_nll for a in answers], dtype=torch.float64)
        total += weight * torch.softmax(-nll / temperature, dim=1)
    return total


@pytest.mark.parametrize("names", [BY_WORDS, BY_STATES, ("linear_probe", "lora"), ("lora", "lora_linear")])
def test_a_blend_answers_by_the_weighted_mean_of_its_members(names: tuple[str, ...], tmp_path: Path) -> None:
    examples = TARGET.split("test")
    blend(names, 13).prompt.save_pretrained(tmp_path / "blend")
    given = predict(Prompt.from_pretrained(tmp_path / "blend", backbone().card), TARGET, backbone(), examples)
    nll = torch.tensor([a.choice_nll for a in given], dtype=torch.float64)
    torch.testing.assert_close((-nll).exp(), by_hand(names, 13, examples), rtol=0, atol=1e-9)
    assert [a.choice for a in given] == nll.argmin(1).tolist()


def test_scores_do_not_depend_on_what_else_is_scored() -> None:
    """Blends of several draws, plain prompts and an ensemble's form, each as if it were alone."""
    many = [blend(BY_STATES, seed) for seed in SEEDS]
    many += [adapted("prompt_tuning", 21), blend(BY_WORDS, 21), adapted("zero_shot", 13), adapted("zero_shot", 42)]
    for one, result in zip(many, score_on_test(backbone(), many), strict=True):
        alone = evaluate(one.prompt, TARGET, backbone())
        assert result.scores == pytest.approx(alone.scores, abs=1e-9)
        assert result.nll == pytest.approx(alone.nll, abs=1e-9)


def test_texts_are_read_once_behind_equal_prompts() -> None:
    once = tokens_of([adapted("zero_shot", 13)])
    assert tokens_of([adapted("zero_shot", seed) for seed in SEEDS]) == once
    assert tokens_of([blend(BY_WORDS, seed) for seed in SEEDS]) == once  # six members, none with a prompt


def test_blends_of_several_draws_read_what_they_share_once() -> None:
    """No prompt at all is shared by all draws; a start that is not trained by the two heads behind it in each draw."""
    together = tokens_of([blend(BY_STATES, seed) for seed in SEEDS])
    expected = tokens_of([adapted(name, seed) for name in BY_STATES[:2] for seed in SEEDS])
    for seed in SEEDS:
        expected += tokens_of([adapted(name, seed) for name in BY_STATES[2:4]])
        expected += tokens_of([adapted(BY_STATES[4], seed)])
    assert together == expected
    assert together < 0.7 * sum(tokens_of([adapted(name, seed)]) for name in BY_STATES for seed in SEEDS)


def test_a_blend_writes_no_free_text() -> None:
    free = text_task("shout", str.upper)
    with pytest.raises(DataError, match=r"'shout'.*free text"):
        evaluate(blend(BY_WORDS, 13).prompt, free, backbone())

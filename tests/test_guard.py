"""The guard drops a poisoned prior, keeps a good one, says which, and never looks at test."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from promptprior.adapt import adapt, make_episode
from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.choose import Candidate, held_out_of, judged, paired_gap
from promptprior.artifacts.artifact import Prior, Prompt
from promptprior.backbone import Backbone
from promptprior.cli import main
from promptprior.config.training import Settings, Training
from promptprior.config.yaml_file import load_yaml
from promptprior.errors import SpecError
from promptprior.fit import fit
from promptprior.guard import Guarded, guarded
from promptprior.methods import make_method
from tests.backbone.tiny import tiny
from tests.test_cli import fit_prior
from tests.world import always, choice_task, early, text_task

TARGET = choice_task("target", always(0))
MULTITASK = make_method("multitask")
GENTLE = Settings(
    length=4,
    source=Training(steps=30, batch_size=8, learning_rates=(0.5,), schedule="constant"),
    target=Training(steps=2, batch_size=4, learning_rates=(0.01,), eval_every=1),  # too little to undo a prior
)


@cache
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@cache
def prior(label: int) -> Prior:
    """What a task teaches on which one label is always right."""
    return fit(MULTITASK, [choice_task(f"always-{label}", always(label))], backbone(), GENTLE)


@cache
def verdict(label: int) -> Guarded:
    [found] = guarded(MULTITASK, [make_episode(TARGET, 8, 13)], backbone(), prior(label), GENTLE)
    return found


def test_a_poisoned_prior_is_dropped_and_the_artifact_says_so(tmp_path: Path) -> None:
    found = verdict(1)
    assert not found.kept
    name = found.adapted.prompt.header.method
    assert name in ("zero_shot", "prompt_tuning")
    assert found.says.startswith(f"guard: fell back to {name}, away from the prior (multitask). On 8 dev examples: ")
    found.adapted.prompt.save_pretrained(tmp_path)
    told = Prompt.from_pretrained(tmp_path, backbone().card).header.scores["guard"]
    assert isinstance(told, dict)
    assert (told["fell_back"], told["prior"], told["chosen"]) == (True, "multitask", name)
    assert told["says"] == found.says
    assert told["dev"].keys() == {"multitask", "zero_shot", "prompt_tuning"}
    assert found.gap.mean > 0


def test_a_good_prior_is_kept_and_is_the_prompt_that_adapt_makes() -> None:
    found = verdict(0)
    assert found.kept
    assert "guard: kept the prior (multitask)" in found.says
    [plain] = adapt(MULTITASK, [make_episode(TARGET, 8, 13)], backbone(), prior(0), GENTLE)
    assert torch.equal(found.adapted.prompt.params["prompt"], plain.prompt.params["prompt"])
    assert found.adapted.prompt.header.scores["dev"] == plain.prompt.header.scores["dev"]
    told = found.adapted.prompt.header.scores["guard"]
    assert isinstance(told, dict)
    assert told["fell_back"] is False
    assert found.gap.of == max(found.candidates[1:], key=lambda c: c.rank).method


def test_candidates_are_what_adapt_makes_by_itself_and_dev_is_what_training_saw() -> None:
    episode = make_episode(TARGET, 8, 13)
    for candidate in verdict(1).candidates[1:]:
        [plain] = adapt(make_method(candidate.method), [episode], backbone(), None, GENTLE)
        assert torch.equal(candidate.adapted.prompt.params["prompt"], plain.prompt.params["prompt"])
        best = next(p for p in plain.curve if p["step"] == plain.best_step)
        assert candidate.score == pytest.approx(best["dev_score"])
        assert candidate.nll == pytest.approx(best["dev_nll"], rel=1e-4)


def test_the_verdict_does_not_depend_on_test() -> None:
    examples = {**TARGET.examples}
    other = choice_task("elsewhere", early).examples["test"]
    for test in ((), tuple(replace(e, id=f"other-{i}") for i, e in enumerate(other))):
        task = replace(TARGET, examples={**examples, "test": test})
        [found] = guarded(MULTITASK, [make_episode(task, 8, 13)], backbone(), prior(1), GENTLE)
        assert found.says == verdict(1).says
        assert [c.each_nll for c in found.candidates] == [c.each_nll for c in verdict(1).candidates]


def test_episodes_are_judged_apart_also_in_free_text() -> None:
    free = text_task("shout", lambda word: word[:2])
    episodes = [make_episode(TARGET, 8, 13), make_episode(free, 4, 21)]
    choice, text = guarded(MULTITASK, episodes, backbone(), prior(1), GENTLE)
    assert choice.says == verdict(1).says
    assert all(c.score is None for c in text.candidates)
    best = min(c.nll for c in text.candidates)
    chosen = next(c for c in text.candidates if c.method == text.adapted.prompt.header.method)
    assert chosen.nll == best
    assert "dev examples: multitask NLL" in text.says


@pytest.mark.parametrize("name", ["spot", "tpt", "reptile", "bmtpt"])
def test_every_method_with_a_prior_can_be_guarded(name: str) -> None:
    options = {"tpt": {"bank_size": 6}, "bmtpt": {"particles": 2}, "spot": {"probe_steps": 2}}.get(name, {})
    method = make_method(name, options)
    short = replace(GENTLE, source=replace(GENTLE.source, steps=2))
    made = fit(method, [choice_task("a", always(1)), choice_task("b", always(1))], backbone(), short)
    [found] = guarded(method, [make_episode(TARGET, 4, 13)], backbone(), made, short)
    assert [c.method for c in found.candidates] == [name, "zero_shot", "prompt_tuning"]


def test_a_method_without_a_prior_has_nothing_to_guard() -> None:
    with pytest.raises(SpecError, match="starts from no prior"):
        guarded(make_method("prompt_tuning"), [make_episode(TARGET, 2, 13)], backbone(), None, GENTLE)


# Rules ---------------------------------------------------------------------------------------------------


def candidate(name: str, score: float | None, nll: Sequence[float]) -> Candidate:
    adapted = verdict(1).candidates[0].adapted
    renamed = replace(adapted.prompt, header=replace(adapted.prompt.header, method=name))
    return Candidate(replace(adapted, prompt=renamed), score, sum(nll) / len(nll), (), tuple(nll))


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([("prior", None, (1.0, 1.0)), ("zero_shot", None, (1.0, 1.0)), ("scratch", None, (1.0, 1.0))], "prior"),
        ([("prior", None, (1.0, 1.0)), ("zero_shot", None, (1.0, 0.8)), ("scratch", None, (1.0, 0.8))], "zero_shot"),
        ([("prior", None, (1.0, 1.0)), ("zero_shot", None, (2.0, 0.8)), ("scratch", None, (1.0, 0.9))], "scratch"),
        ([("prior", None, (1.0, 1.0)), ("zero_shot", None, (1.0, 0.99999999)), ("scratch", None, (3.0, 3.0))], "prior"),
    ],
)
def test_lower_nll_wins_and_ties_stay_with_the_prior(
    rows: list[tuple[str, None, Sequence[float]]], chosen: str
) -> None:
    assert Guarded.of([candidate(*row) for row in rows]).adapted.prompt.header.method == chosen


def test_score_comes_before_nll() -> None:
    prior_, zero, scratch = verdict(1).candidates
    rival = replace(zero, score=1.0, nll=99.0, each_nll=tuple(99.0 for _ in zero.each_nll))
    right = tuple(replace(p, choice=0) for p in zero.predictions)
    wrong = tuple(replace(p, choice=1) for p in zero.predictions)
    found = Guarded.of([replace(prior_, score=0.0, predictions=wrong), replace(rival, predictions=right), scratch])
    assert found.gap.mean == 1.0 if found.adapted.prompt.header.method == "zero_shot" else scratch.score == 1.0
    assert not found.kept


def test_the_interval_is_that_of_a_paired_difference() -> None:
    """The bootstrap agrees with the normal interval of the differences; what both have in common cancels."""
    g = torch.Generator().manual_seed(0)
    common, extra = torch.randn(60, generator=g) * 50, torch.randn(60, generator=g)
    a = candidate("a", None, common.tolist())
    b = candidate("b", None, (common + 1 + extra).tolist())
    gap = paired_gap(a, b)
    mean, half = float((1 + extra).mean()), 1.96 * float(extra.std()) / 60**0.5
    assert gap.mean == pytest.approx(mean, abs=1e-4) == sum(b.each_nll[p] - a.each_nll[p] for p in range(60)) / 60
    assert (gap.low, gap.high) == (pytest.approx(mean - half, abs=0.1), pytest.approx(mean + half, abs=0.1))
    doubt = "so few examples cannot tell this from chance"
    assert doubt not in gap.says
    assert doubt in paired_gap(a, candidate("c", None, (common + extra - extra.mean()).tolist())).says


def test_on_dev_asks_each_example_once() -> None:
    made: Adapted = verdict(0).candidates[0].adapted
    found = judged(made, held_out_of(backbone(), made))
    assert len(found.each_nll) == len(made.episode.shots.dev) == len(found.predictions)
    assert found.nll == pytest.approx(sum(found.each_nll) / 8)


# Command line --------------------------------------------------------------------------------------------


def test_adapt_guard_says_what_it_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = fit_prior(tmp_path)
    words = ["adapt", *common, "--prior", tmp_path / "prior", "--target", "edges", "--shots", 2, "--steps", 2]
    assert main([str(w) for w in (*words, "--guard", "--output", tmp_path / "prompt")]) == 0
    out = capsys.readouterr().out
    header = json.loads((tmp_path / "prompt" / "promptprior.json").read_text())
    told = header["scores"]["guard"]
    assert told["says"] in out
    assert told["chosen"] == header["method"]
    assert header["scores"]["test_examples"] == 8
    assert load_yaml(tmp_path / "prompt.plan.yaml")["guard"] is True
    assert not (tmp_path / "prompt.work").exists()
    assert main([str(w) for w in (*words[:-2], "--method", "prompt_tuning", "--guard")]) == 2
    assert "nothing to guard (--guard, --method)" in capsys.readouterr().err

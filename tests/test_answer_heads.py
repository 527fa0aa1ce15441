"""Heads from adaptation to a saved prompt: what they are fitted on, what dev says, what a loaded prompt answers."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.fit_head import fit_heads
from promptprior.adaptation.folds import fold_episodes
from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.export_prompt import export_prompt
from promptprior.backbone import Backbone, ranking_tokens
from promptprior.config.training import Settings
from promptprior.errors import ArtifactError, DataError, SpecError
from promptprior.evaluate import evaluate, predict, prompt_objective
from promptprior.heads.head import Readout
from promptprior.heads.named_heads import NAMED_HEADS
from promptprior.methods import METHODS, make_method
from promptprior.tasks.sampling.batch import collate
from promptprior.tasks.sampling.draws import Shots
from promptprior.tasks.task import Example, Task
from tests.backbone.tiny import tiny
from tests.world import choice_task, early, short, text_task

TARGET = choice_task("words", early, size=48)
PROBES = ("linear_probe", "knn", "constant", "zero_shot_contextual", "zero_shot_batch", "zero_shot_calibrated",
          "probe_mixture")  # fmt: skip
EMPTY = torch.zeros(1, 0, 0)


@cache
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@cache
def adapted(name: str, folds: int = 0, seed: int = 13) -> Adapted:
    settings = replace(short(), folds=folds)
    [one] = adapt(make_method(name), [make_episode(TARGET, 8, seed)], backbone(), None, settings)
    return one


def read(task: Task, examples: tuple[Example, ...], name: str) -> Readout:
    """What a head reads of texts without a prompt, by the engine alone."""
    head, model = NAMED_HEADS[METHODS[name].head], backbone()
    tokens = ranking_tokens(model, task, examples)
    batch, prompt = collate(tokens), torch.zeros(1, 0, model.width)
    losses = model.losses(prompt, batch).double() * batch.target_lengths
    sites = head.sites(model.layers)
    states = model.text_states(prompt, batch, sites).double() if sites else None
    return Readout(losses.reshape(len(examples), -1), states)


def test_the_heads_of_probes_are_all_of_them() -> None:
    assert {METHODS[name].head for name in PROBES} == {*NAMED_HEADS}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_its_head_fitted_on_all_shots(name: str) -> None:
    """Test answers are those of the head that all shots teach, dev's of one that has seen training shots alone."""
    one, head = adapted(name), NAMED_HEADS[METHODS[name].head]
    shots, test = one.episode.shots, TARGET.split("test")
    texts = head.extra_texts([e.text for e in (*shots.train, *shots.dev)])
    extra = read(TARGET, tuple(replace(shots.train[0], text=text) for text in texts), name) if texts else None

    def nll_after(taught: tuple[Example, ...], asked: tuple[Example, ...]) -> torch.Tensor:
        taught = tuple(sorted(taught, key=lambda e: e.id))  # as the library has them, whatever the draw
        params = head.fit(read(TARGET, taught, name), torch.tensor([e.label for e in taught]), extra)
        of_asked = read(TARGET, asked, name)
        used = list(head.used(params))
        states = of_asked.states[:, used] if of_asked.states is not None else None
        return head.choice_nll(params, Readout(of_asked.nll, states))

    expected = nll_after((*shots.train, *shots.dev), test)
    answers = predict(one.prompt, TARGET, backbone(), test)
    torch.testing.assert_close(
        torch.tensor([a.choice_nll for a in answers], dtype=torch.float64), expected, atol=1e-4, rtol=1e-4
    )
    on_dev = nll_after(shots.train, shots.dev).argmin(1)
    right = [int(on_dev[i]) == e.label for i, e in enumerate(shots.dev)]
    assert one.dev_score == pytest.approx(sum(right) / len(right))
    assert [a.example for a in one.out_of_fold] == [*shots.dev]  # what the guard judges by
    held_out = torch.tensor([a.target_nll for a in one.out_of_fold], dtype=torch.float64)
    torch.testing.assert_close(held_out, nll_after(shots.train, shots.dev), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PROBES)
def test_a_saved_head_answers_as_before_and_scores_the_same_in_a_group(name: str, tmp_path: Path) -> None:
    one = adapted(name)
    one.prompt.save_pretrained(tmp_path / "prompt")
    loaded = Prompt.from_pretrained(tmp_path / "prompt", backbone().card)
    test = TARGET.split("test")
    assert predict(loaded, TARGET, backbone(), test) == predict(one.prompt, TARGET, backbone(), test)
    alone = evaluate(one.prompt, TARGET, backbone())
    together = score_on_test(backbone(), [adapted("linear_probe", seed=21), one, adapted("zero_shot")])[1]
    assert together.scores == alone.scores
    assert together.nll == pytest.approx(alone.nll, rel=1e-5)


def test_a_head_of_a_trained_prompt_reads_behind_it() -> None:
    prompt_tuning = replace(make_method("prompt_tuning"), head="linear")
    [one] = adapt(prompt_tuning, [make_episode(TARGET, 8, 13)], backbone(), None, short())
    bare = adapted("linear_probe").prompt
    assert one.prompt.params["prompt"].shape == (1, 4, backbone().width)
    assert one.prompt.header.head == "linear"
    test = TARGET.split("test")
    behind, without = (predict(p, TARGET, backbone(), test) for p in (one.prompt, bare))
    assert [a.choice_nll for a in behind] != [a.choice_nll for a in without]


def test_dev_shots_judge_heads_that_all_other_shots_but_their_fold_have_taught() -> None:
    """Behind a prompt that the training shots taught: the slow way, each fold of dev as dev of its own."""
    episode, head = make_episode(TARGET, 8, 13), NAMED_HEADS["linear"]
    prompt_tuning = replace(make_method("prompt_tuning"), head="linear")
    [one] = adapt(prompt_tuning, [episode], backbone(), None, short())
    given, bare = {a.example.id: a.target_nll for a in one.out_of_fold}, one.prompt.headless
    assert [*given] == [e.id for e in episode.shots.dev]
    parts = fold_episodes(replace(episode, shots=Shots(episode.shots.dev, ())), 4)
    assert len(parts) == 4
    for part in parts:
        own = replace(episode, shots=Shots((*episode.shots.train, *part.shots.train), part.shots.dev))
        [alone] = fit_heads(head, prompt_objective(bare, backbone()), bare.params, [own])
        for answer in alone.on_dev:
            assert given[answer.example.id] == pytest.approx(answer.target_nll, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["linear_probe", "zero_shot_calibrated"])
def test_answers_out_of_fold_are_those_of_heads_without_the_fold(name: str) -> None:
    """The slow way: every fold as its own episode."""
    one = adapted(name, folds=3)
    given = {a.example.id: a.target_nll for a in one.out_of_fold}
    assert len(given) == len(one.episode.shots.train) + len(one.episode.shots.dev)
    for part in fold_episodes(one.episode, 3):
        [alone] = adapt(make_method(name), [replace(part, shots=replace(part.shots, dev=part.shots.train))],
                        backbone(), None, short())  # fmt: skip
        for example, answer in zip(
            part.shots.dev, predict(alone.prompt, TARGET, backbone(), part.shots.dev), strict=True
        ):
            assert given[example.id] == pytest.approx(answer.choice_nll, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "folds", "times"),
    [
        ("linear_probe", 0, 0),  # reads states alone
        ("linear_probe", 3, 0),
        ("constant", 0, 0),
        ("zero_shot_calibrated", 0, 1),
        ("zero_shot_calibrated", 3, 2),  # for the heads of all folds, and for that of all shots
        ("prompted_mixture", 0, 1),
    ],
)
def test_the_choices_of_shots_are_scored_as_often_as_heads_ask(name: str, folds: int, times: int) -> None:
    before, settings = backbone().meter.rows, replace(short(), folds=folds)
    [one] = adapt(make_method(name), [make_episode(TARGET, 8, 13)], backbone(), None, settings)
    shots = len(one.episode.shots.train) + len(one.episode.shots.dev)
    assert backbone().meter.rows - before == times * shots * len(TARGET.label_names) == one.cost.rows
    said: Any = one.prompt.header.scores["dev"]
    assert said["dev_score"] == one.dev_score is not None
    assert (said["best_step"], one.best_step) == (0, 0)


@pytest.mark.parametrize("folds", [0, 3])
def test_where_nothing_is_trained_the_curve_is_what_the_head_answers_to_dev(folds: int) -> None:
    """By the slow way: heads of training shots alone, or of all folds but one."""
    one, nll = adapted("linear_probe", folds=folds), list[float]()
    for part in fold_episodes(one.episode, folds):
        [alone] = adapt(make_method("linear_probe"), [replace(part, shots=replace(part.shots, dev=part.shots.train))],
                        backbone(), None, short())  # fmt: skip
        answers = predict(alone.prompt, TARGET, backbone(), part.shots.dev)
        nll += [a.choice_nll[e.label or 0] for a, e in zip(answers, part.shots.dev, strict=True)]
    [point] = one.curve
    assert point == {
        "step": 0,
        "train_loss": None,
        "dev_score": one.dev_score,
        "dev_nll": pytest.approx(sum(nll) / len(nll), rel=1e-3),
    }


def test_demonstrations_with_a_head_have_folds_too() -> None:
    """Each fold has a prompt of its own length, so folds do not run as copies."""
    one = adapted("in_context_contextual", folds=2)
    assert len(one.out_of_fold) == len(one.episode.shots.train) + len(one.episode.shots.dev)
    right = [min(range(2), key=a.target_nll.__getitem__) == a.example.label for a in one.out_of_fold]
    assert one.dev_score == pytest.approx(sum(right) / len(right))


def test_what_a_head_cannot_do_is_said() -> None:
    probe = make_method("linear_probe")
    free = text_task("free", str.upper)
    with pytest.raises(SpecError, match=r"linear_probe.*free text"):
        adapt(probe, [make_episode(free, 4, 13)], backbone(), None, short())
    with pytest.raises(ArtifactError, match="linear head"):
        export_prompt(adapted("linear_probe").prompt, "npy", "never-written")
    other = choice_task("words", early, choices=("no", "yes"))
    with pytest.raises(DataError, match="fitted to"):
        predict(adapted("linear_probe").prompt, other, backbone(), other.split("test"))


def test_the_head_is_no_part_of_older_hashes() -> None:
    from promptprior.config.mapping import to_mapping

    assert "head" not in to_mapping(make_method("prompt_tuning"))
    assert to_mapping(make_method("linear_probe"))["head"] == "linear"
    assert Settings().folds == 0

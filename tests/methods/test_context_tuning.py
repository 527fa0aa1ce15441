"""Context tuning starts as in-context learning, never fits an example that sees itself, and resumes to the bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptprior.adapt import Adapted, adapt, make_episode, score_on_test
from promptprior.backbone import Backbone, ranking_tokens, training_tokens
from promptprior.backbone.forward.reference import reference_losses
from promptprior.config.training import Settings, Training
from promptprior.fit import RunControl, make_run_context
from promptprior.methods import Episode, make_method
from promptprior.methods.target_only.in_context import InContext
from promptprior.objectives.objective import PromptObjective
from promptprior.objectives.weight_objective import objective_of
from promptprior.parameterisations.registry import parameterisation
from promptprior.tasks.sampling.batch import collate
from tests.backbone.tiny import tiny
from tests.world import choice_task, early

TASK = choice_task("target", early)
ARMS = ("context_tuning", "context_tuning_prompt")


def settings(**changes: object) -> Settings:
    stage = {"steps": 3, "batch_size": 4, "learning_rates": (0.3,), "eval_every": 1, **changes}
    return Settings(length=4, target=Training(**stage))  # type: ignore[arg-type]


def adapted(name: str, backbone: Backbone, episode: Episode, using: Settings, **options: object) -> Adapted:
    return adapt(make_method(name, options), [episode], backbone, None, using)[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("name", ARMS)
def test_untrained_it_answers_exactly_as_in_context(name: str, family: str) -> None:
    backbone, episode = tiny(family), make_episode(TASK, 3, 13)
    tokens = ranking_tokens(backbone, TASK, TASK.split("test")[:6])
    losses, scores = [], []
    for each in ("in_context", name):
        made = adapted(each, backbone, episode, settings(steps=0))
        header = made.prompt.header
        form = parameterisation(header.parameterisation, header.parameterisation_settings, backbone)
        losses.append(objective_of(backbone, form).losses(made.prompt.params, collate(tokens)))
        scores.append(score_on_test(backbone, [made], 12)[0].scores)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)
    assert scores[1][TASK.metrics[0]] == scores[0][TASK.metrics[0]]


@pytest.mark.parametrize("name", ARMS)
def test_a_text_does_not_see_its_own_demonstration(name: str) -> None:
    """The spans are where the answers of the examples stand, and what a step reads is the reference under that mask."""
    backbone, episode = tiny("llama"), make_episode(TASK, 3, 13)
    context = make_run_context(backbone, settings(), RunControl())
    init = make_method(name, {"token_dropout": 0.0}).init(context, [], [episode])
    form, train = init.parameterisation, episode.shots.train
    _, ids = InContext().demonstrations(backbone, episode)
    for example, (start, end) in zip(train, form.spans, strict=True):
        shown = backbone.frozen.decode(ids[start:end])
        assert shown.strip() == f"{example.text}{TASK.target_delimiter}{example.target}".strip()
    tokens = training_tokens(backbone, TASK, train)
    batch = collate(tokens, examples=list(range(len(train))), step=5, seeds=[13])
    losses = PromptObjective(backbone, form).losses(init.params, batch)
    prompts, index = form.free.prompts(init.params, batch)
    for row, (start, end) in enumerate(form.spans):
        hidden = torch.zeros(1, len(ids), dtype=torch.bool)
        hidden[0, start:end] = True
        one = batch.take(torch.tensor([row])).reading(index[:1])
        expected = reference_losses(backbone.frozen, prompts, one, hidden)
        torch.testing.assert_close(losses[row : row + 1], expected, rtol=1e-6, atol=1e-6)
    seen = PromptObjective(backbone, form).losses(init.params, replace(batch, step=-1))
    assert (losses - seen).abs().min() > 0


def test_dropout_is_drawn_from_seed_and_step() -> None:
    backbone, episode = tiny("llama"), make_episode(TASK, 3, 13)
    context = make_run_context(backbone, settings(), RunControl())
    options = {"token_dropout": 0.3, "leave_one_out": False}
    init = make_method("context_tuning", options).init(context, [], [episode])
    form = init.parameterisation
    tokens = training_tokens(backbone, TASK, episode.shots.train)

    def hidden(step: int, seed: int) -> torch.Tensor:
        return form.hidden(init.params, collate(tokens, step=step, seeds=[seed]))

    assert torch.equal(hidden(2, 13), hidden(2, 13))
    assert not torch.equal(hidden(2, 13), hidden(3, 13))
    assert not torch.equal(hidden(2, 13), hidden(2, 14))
    assert (hidden(2, 13) == hidden(2, 13)[:1]).all()  # the same for all texts of a copy
    share = torch.stack([hidden(step, 13)[0].float().mean() for step in range(200)]).mean()
    assert 0.25 < share < 0.35
    assert form.hidden(init.params, collate(tokens)) is None


def test_prefixes_of_a_copy_are_shared_by_its_texts(tmp_path: Path) -> None:
    """A prefix of each text's own would be as many numbers as texts times the prefix."""
    backbone, episode = tiny("llama"), make_episode(TASK, 3, 13)
    init = make_method("context_tuning").init(make_run_context(backbone, settings(), RunControl()), [], [episode])
    tokens = training_tokens(backbone, TASK, episode.shots.train)
    batch = collate(tokens, examples=list(range(len(tokens))), step=0, seeds=[13])
    prompts, index = init.parameterisation.prompts(init.params, batch)
    assert (len(prompts.keys), len(index.unique())) == (1, len(tokens))

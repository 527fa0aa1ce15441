"""DePT: its budget, its start, its speeds, and that it learns, generates and comes back from its folder."""

from pathlib import Path

import pytest
import torch

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.as_matrix import single_prompt
from promptprior.backbone import Backbone
from promptprior.config.training import Settings
from promptprior.errors import ArtifactError, SpecError
from promptprior.fit import RunControl, make_run_context
from promptprior.methods import make_method
from promptprior.methods.published import DEPT_RANKS, published_options, published_settings
from promptprior.methods.target_only.dept import Dept
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.offset import Offset
from promptprior.tasks.sampling.batch import Tokens, collate
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, short, text_task

TASK = choice_task("target", always(0))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


def test_the_papers_three_splits_have_as_many_numbers_as_100_tokens() -> None:
    for brief, rank in DEPT_RANKS.items():
        offsets = rank * (published_options("dept")["positions"] + 768)
        assert brief * 768 + offsets == 100 * 768


def test_what_the_short_prompt_saves_is_what_offsets_may_cost(backbone: Backbone) -> None:
    context = make_run_context(backbone, Settings(length=50), RunControl())
    form = Dept(positions=32).offset(context)
    assert form == Offset(30, 32, rank=10)  # 20 x 32 numbers saved, 32 + 32 for each rank
    assert Dept(short=48, positions=32).offset(context).rank == 1
    assert Dept(short=50).offset(context).rank == 1
    with pytest.raises(SpecError, match="short prompt of 51 tokens"):
        Dept(short=51).offset(context)


def test_it_starts_as_a_short_prompt_and_changes_no_text(backbone: Backbone) -> None:
    episodes = [make_episode(TASK, 2, seed) for seed in (13, 21)]
    begun = Dept(positions=5, rank=3).init(make_run_context(backbone, short(), RunControl()), [], episodes)
    assert begun.params["prompt"].shape == (2, 2, backbone.width)
    assert begun.params["a"].shape == (2, 5, 3)
    assert 0.3 < float(begun.params["a"].abs().max()) <= 3**-0.5
    assert not bool(begun.params["b"].any())
    assert not torch.equal(begun.params["a"][0], begun.params["a"][1])
    batch = collate([Tokens((5, 6), ((7,),)), Tokens((8,), ((9,),))], copies=[0, 1])
    plain = backbone.losses(begun.params["prompt"], batch)
    assert isinstance(begun.parameterisation, Offset)
    torch.testing.assert_close(PromptObjective(backbone, begun.parameterisation).losses(begun.params, batch), plain)
    assert begun.lr_multipliers == {"a": 0.1, "b": 0.1}


def test_offsets_learn_and_prompts_are_scored_with_them(backbone: Backbone, tmp_path: Path) -> None:
    """A task that the offsets alone can learn: the prompt stands still."""
    method = Dept(short=1, positions=6, rank=2, low_rank_speed=1.0)
    [done] = adapt(method, [make_episode(TASK, 4, 13)], backbone, None, short())
    losses = [point["train_loss"] for point in done.curve if point["train_loss"] is not None]
    assert losses[-1] < losses[0]
    assert done.trainable == backbone.width + 2 * (6 + backbone.width)
    assert bool(done.prompt.params["b"].any())
    without = {**done.prompt.params, "b": torch.zeros_like(done.prompt.params["b"])}
    form = Offset(1, 6, 2)
    batch = collate([Tokens((5, 6), ((7,),))])
    objective = PromptObjective(backbone, form)
    assert not torch.allclose(objective.losses(done.prompt.params, batch), objective.losses(without, batch))
    done.prompt.save_pretrained(tmp_path / "prompt")
    again = Prompt.from_pretrained(tmp_path / "prompt", backbone.card)
    assert again.header.parameterisation_settings == {"length": 1, "positions": 6, "rank": 2, "name": "offset"}
    with pytest.raises(ArtifactError, match="also changes the embeddings of every text"):
        single_prompt(again, "this prompt")


def test_free_text_is_generated_with_offsets(backbone: Backbone) -> None:
    [done] = adapt(
        Dept(positions=6), [make_episode(text_task("shout", lambda w: w[:2]), 2, 13)], backbone, None, short()
    )
    [marks] = score_on_test(backbone, [done], limit=2)
    assert set(marks.scores) == {"exact_match"}


def test_published_settings_and_options() -> None:
    settings = published_settings("dept", scale=4.0)
    assert [rate * 4.0 for rate in settings.target.learning_rates] == pytest.approx([0.3, 0.4])
    assert settings.target.learning_rates[0] * 4.0 * published_options("dept")["low_rank_speed"] == pytest.approx(5e-3)
    assert (settings.length, settings.target.steps) == (100, 40_000)
    with pytest.raises(SpecError, match="no published settings: unknown method 'deft'; did you mean 'dept'"):
        published_options("deft")


@pytest.mark.parametrize("options", [{"short": -1}, {"positions": 0}, {"rank": -2}, {"low_rank_speed": -0.1}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    [(name, value)] = options.items()
    with pytest.raises(SpecError, match=rf"{value} \(--options.{name.replace('_', '-')}\): expected at least [01]"):
        make_method("dept", options)

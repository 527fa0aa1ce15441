"""Residual prompt tuning: starts where prompt tuning does, at two rates, and ends as a plain prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.adaptation.runs import target_run
from promptprior.artifacts.artifact import Prompt
from promptprior.backbone import Backbone
from promptprior.errors import SpecError
from promptprior.fit import RunControl, make_run_context
from promptprior.methods import make_method
from promptprior.objectives.weight_objective import objective_of
from promptprior.parameterisations.residual import NETWORK
from tests.backbone.tiny import tiny
from tests.world import choice_task, early, short

TARGET = choice_task("target", early, size=12)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@pytest.mark.parametrize("separate", [False, True])
def test_it_starts_at_prompt_tunings_prompt(backbone: Backbone, separate: bool) -> None:
    context, episodes = (
        make_run_context(backbone, short(), RunControl()),
        [make_episode(TARGET, 2, s) for s in (13, 21)],
    )
    begun = make_method("residual_prompt_tuning", {"separate": separate, "bottleneck": 5}).init(context, [], episodes)
    plain = make_method("prompt_tuning").init(context, [], episodes).params["prompt"]
    form: Any = begun.parameterisation
    assert torch.equal(form.fold(begun.params)["prompt"], plain)
    assert begun.params["down"].shape == (2, 4 if separate else 1, backbone.width, 5)
    assert not torch.equal(begun.params["down"][0], begun.params["down"][1])


def test_prompt_and_network_move_at_rates_of_their_own(backbone: Backbone) -> None:
    def steps(**options: Any) -> dict[str, float]:
        settings = short(target=replace(short().target, steps=1, schedule="constant", eval_every=0))
        context, episode = make_run_context(backbone, settings, RunControl()), make_episode(TARGET, 4, 13)
        method = make_method("residual_prompt_tuning", options)
        begun = method.init(context, [], [episode])
        objective = objective_of(backbone, begun.parameterisation)
        done = context.train(target_run(method, context, objective, begun, [episode], (0.2,)), "target")
        return {n: float((done.last[n] - begun.params[n]).abs().max()) for n in begun.params}

    moved = steps(gain=0.5, network_rate=0.05)
    step = 0.2 * backbone.scale
    for name in ("prompt", "gain", "shift"):
        assert moved[name] == pytest.approx(step, rel=1e-2), name
    for name in NETWORK:
        assert moved[name] == pytest.approx(0.2 * 0.05, rel=1e-2), name
    same = steps(gain=0.5, network_rate=None)
    assert all(value == pytest.approx(step, rel=2e-2) for value in same.values())


@pytest.mark.parametrize("name", ["residual_prompt_tuning", "residual_as_released"])
def test_what_is_saved_is_a_plain_prompt_that_peft_reads(backbone: Backbone, tmp_path: Path, name: str) -> None:
    """The released code's prompt.npy is the prompt before its network, which is not what was scored."""
    done = adapt(make_method(name), [make_episode(TARGET, 2, 13)], backbone, settings=short())[0]
    assert done.prompt.header.parameterisation == "direct"
    assert done.prompt.params["prompt"].shape == (1, 4, backbone.width)
    networks = 2 * backbone.width * (100 if name == "residual_prompt_tuning" else 800)
    assert done.trainable > networks
    done.prompt.save_pretrained(tmp_path / "prompt")
    again = replace(done, prompt=Prompt.from_pretrained(tmp_path / "prompt", backbone.card))
    assert score_on_test(backbone, [again]) == score_on_test(backbone, [done])
    twin = tiny("llama", torch.float32).frozen.model
    loaded: Any = PeftModel.from_pretrained(twin, tmp_path / "prompt")
    torch.testing.assert_close(loaded.get_prompt(batch_size=1)[0], done.prompt.params["prompt"][0])


def test_its_loss_falls(backbone: Backbone) -> None:
    settings = short(target=replace(short().target, steps=30, batch_size=8, learning_rates=(0.1,), schedule="constant"))
    for options in ({}, {"separate": True}):
        method = make_method("residual_prompt_tuning", options)
        curve = adapt(method, [make_episode(TARGET, 4, 13)], backbone, settings=settings)[0].curve
        losses = [point["train_loss"] for point in curve if point["train_loss"] is not None]
        assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SpecError, match="bottleneck 0"):
        make_method("residual_prompt_tuning", {"bottleneck": 0})
    with pytest.raises(SpecError, match="has no prior to fit"):
        make_method("residual_prompt_tuning").fit(None, [], 13)  # type: ignore[arg-type]

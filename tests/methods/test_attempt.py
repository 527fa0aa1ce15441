"""ATTEMPT: what moves, at which rate, from where; what targets share; and that attention can choose."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from promptprior.adapt import adapt, make_episode
from promptprior.adaptation.runs import target_run
from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone
from promptprior.config.training import Settings, Training
from promptprior.errors import SpecError
from promptprior.fit import RunControl, fit, make_run_context
from promptprior.methods import make_method
from promptprior.methods.from_sources.attempt import Attempt
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.run_context import RunContext
from promptprior.objectives.weight_objective import objective_of
from promptprior.parameterisations.retrieval.mixture import NETWORK
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, early, short

ANSWERS = ("red", "no", "it was")
SOURCES = [choice_task(f"s{i}", always(i), ANSWERS, size=12) for i in range(3)]
TARGETS = [choice_task("t0", always(2), ANSWERS, size=12), choice_task("t1", early, size=12)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@pytest.fixture(scope="module")
def prior(backbone: Backbone) -> Prior:
    source = Training(steps=25, batch_size=12, learning_rates=(0.3,), schedule="constant")
    return fit(Spot(), SOURCES, backbone, short(source=source))


def lab_of(backbone: Backbone, settings: Settings | None = None) -> RunContext:
    return make_run_context(backbone, settings or short(), RunControl())


def one_step(**changes: Any) -> Settings:
    return short(target=replace(short().target, steps=1, schedule="constant", eval_every=0, **changes))


def moved_by_one_step(backbone: Backbone, prior: Prior, method: Attempt, **changes: Any) -> dict[str, float]:
    """The median step of every tensor in the first step of adaptation, with a run that keeps the last step."""
    context, episode = lab_of(backbone, one_step(**changes)), make_episode(TARGETS[1], 4, 13)
    begun = method.init(context, [prior], [episode])
    objective = objective_of(backbone, begun.parameterisation)
    done = context.train(target_run(method, context, objective, begun, [episode], (0.2,)), "target")
    return {n: float((done.last[n] - begun.params[n]).abs().median()) for n in begun.params}


def test_prompt_and_network_move_at_rates_of_their_own(backbone: Backbone, prior: Prior) -> None:
    moved = moved_by_one_step(backbone, prior, Attempt(start="first", attention_rate=0.05, centre=True))
    assert moved["target"] == pytest.approx(0.2 * backbone.scale, rel=1e-2)
    for name in NETWORK:
        assert moved[name] == pytest.approx(0.2 * 0.05, rel=1e-2), name
    assert moved["sources"] == moved["centre"] == 0


def test_the_released_rate_of_attention_never_applied_and_this_one_does(backbone: Backbone, prior: Prior) -> None:
    """Their code looks for "encoder.attn_W_up"; the parameter is called "encoder.attn_W_up.weight"."""
    begun = Attempt(start="first").init(lab_of(backbone), [prior], [make_episode(TARGETS[1], 4, 13)])
    assert set(begun.lr_multipliers) == {"sources", *NETWORK}
    assert set(begun.lr_multipliers) <= set(begun.params)
    still = moved_by_one_step(backbone, prior, Attempt(start="first", attention_rate=0.0))
    assert [name for name, step in still.items() if step > 0] == ["target"]
    released = moved_by_one_step(backbone, prior, make_method("attempt_as_released", {"temperature": 5.0}))
    assert released["down"] == pytest.approx(0.2 * backbone.scale, rel=0.02)
    assert released["target"] == pytest.approx(0.2 * backbone.scale, rel=0.02)
    assert released["gain"] == released["shift"] == released["sources"] == 0


def test_source_prompts_stay_as_they_are_even_under_weight_decay(backbone: Backbone, prior: Prior) -> None:
    settings = short(target=replace(short().target, weight_decay=0.5))
    done = adapt(Attempt(), [make_episode(t, 4, 13) for t in TARGETS], backbone, prior, settings)
    width, length = backbone.width, 4
    for one in done:
        assert torch.equal(one.prompt.params["sources"][0], prior.params["prompt"])
        assert one.trainable == length * width + 2 * 100 * width + 2 * width
    assert not torch.equal(done[0].prompt.params["target"], done[1].prompt.params["target"])


def test_the_released_settings_train_what_their_code_trains(backbone: Backbone, prior: Prior) -> None:
    """On T5-base that is 230,400: the published 232 thousand counts the LayerNorm, which their code freezes."""
    done = adapt(make_method("attempt_as_released"), [make_episode(TARGETS[1], 2, 13)], backbone, prior, one_step())[0]
    width, length = backbone.width, 4
    assert done.trainable == length * width + 2 * 100 * width


def test_where_targets_start(backbone: Backbone, prior: Prior) -> None:
    context = lab_of(backbone)
    episodes = [make_episode(choice_task(f"x{i}", always(i), ANSWERS), 8, 13) for i in range(3)]

    def starts(**options: Any) -> torch.Tensor:
        return Attempt(**options).init(context, [prior] * 3, episodes).params["target"][:, 0]

    assert torch.equal(starts(start="similar", probe_steps=25), prior.params["prompt"])
    assert torch.equal(starts(start="first"), prior.params["prompt"][:1].expand(3, -1, -1))
    fresh = make_method("prompt_tuning").init(context, [], episodes).params["prompt"]
    assert torch.equal(starts(start="fresh"), fresh)


def test_its_source_stage_is_spots_unless_it_trains_attention_there() -> None:
    assert Attempt(start="first", joint_steps=3, rank=4).source_recipe() == Spot()
    assert make_method("attempt_as_released").source_recipe() == Spot()
    assert Attempt(attention_steps=5, joint_steps=3).source_recipe() == Attempt(attention_steps=5)


def test_targets_of_a_seed_share_a_network_in_joint_steps(backbone: Backbone, prior: Prior) -> None:
    episodes = [make_episode(TARGETS[0], 2, 13), make_episode(TARGETS[1], 2, 21), make_episode(TARGETS[1], 2, 13)]
    context = lab_of(backbone)
    plain = Attempt(start="first", centre=True).init(context, [prior] * 3, episodes).params
    joint = Attempt(start="first", joint_steps=4, centre=True).init(context, [prior] * 3, episodes).params
    for name in ("down", "up", "centre"):
        assert torch.equal(joint[name][0], joint[name][2])
        assert not torch.equal(joint[name][0], joint[name][1])
        assert not torch.equal(joint[name][0], plain[name][0])
    assert len({float(p.sum()) for p in joint["target"]}) == 3
    alone = Attempt(start="first", joint_steps=4, centre=True).init(context, [prior], episodes[1:2]).params
    for name, value in alone.items():  # a group sees nothing of the others
        torch.testing.assert_close(joint[name][1:2], value, rtol=1e-3, atol=1e-5)


def test_queries_are_centred_on_the_shots_and_never_on_anything_else(backbone: Backbone, prior: Prior) -> None:
    episode = make_episode(TARGETS[1], 4, 13)
    begun = Attempt(start="first", centre=True).init(lab_of(backbone), [prior], [episode])
    words = [backbone.frozen.embed(torch.tensor(backbone.frozen.alone(e.text))) for e in episode.shots.train]
    expected = torch.stack([w.amax(0) for w in words]).mean(0)
    torch.testing.assert_close(begun.params["centre"][0], expected)
    assert "centre" not in Attempt(start="first").init(lab_of(backbone), [prior], [episode]).params


def test_attention_trained_on_sources_is_where_targets_start(backbone: Backbone) -> None:
    method = Attempt(attention_steps=6, start="first", rank=8, centre=True)
    made, plain = fit(method, SOURCES, backbone, short()), fit(Spot(), SOURCES, backbone, short())
    assert torch.equal(made.params["prompt"], plain.params["prompt"])
    assert made.header.diagnostics["cost"]["rows"] > plain.header.diagnostics["cost"]["rows"]  # type: ignore[index]
    episodes = [make_episode(t, 2, 13) for t in TARGETS]
    begun = method.init(lab_of(backbone), [made] * 2, episodes).params
    untrained = method.network(lab_of(backbone), make_tokens(backbone, episodes[0]), 13)
    for name in (*NETWORK, "centre"):
        assert torch.equal(begun[name][0], begun[name][1])
        assert torch.equal(begun[name][0], made.params[name][0])
    assert all(not torch.equal(begun[name][0], untrained[name][0]) for name in NETWORK)


def test_a_fit_killed_while_it_trains_attention_comes_to_the_same_bytes(backbone: Backbone, tmp_path: Path) -> None:
    method = Attempt(attention_steps=4, rank=4)

    def dies(stage: str) -> Any:
        def watch(step: int, steps: int, info: Any) -> None:
            if stage == "network" and step == 2:
                raise KeyboardInterrupt

        return watch

    with pytest.raises(KeyboardInterrupt):
        fit(method, SOURCES, backbone, short(), control=RunControl(tmp_path, watch=dies, checkpoint_seconds=0))
    resumed = fit(method, SOURCES, backbone, short(), control=RunControl(tmp_path)).params
    whole = fit(method, SOURCES, backbone, short()).params
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_attention_finds_the_source_that_is_the_target(backbone: Backbone, prior: Prior) -> None:
    """The target's own prompt cannot move; the one source with its answers wins the attention."""
    stage = Training(steps=60, batch_size=12, learning_rates=(0.3,), schedule="constant")
    settings = short(target=stage)
    method = Attempt(start="fresh", attends="sources", attention_rate=0.1, query="mean")
    for answer in (0, 2):
        episode = make_episode(choice_task("x", always(answer), ANSWERS), 8, 13)
        begun = method.init(lab_of(backbone, settings), [prior], [episode])
        held = replace(begun, lr_multipliers={**begun.lr_multipliers, "target": 0.0})
        context = lab_of(backbone, settings)
        objective = objective_of(backbone, begun.parameterisation)
        done = context.train(target_run(method, context, objective, held, [episode], (0.3,)), "target")
        texts = {"x": make_tokens(backbone, episode)}
        form: Any = begun.parameterisation
        weights = form.diagnose(done.last, texts)["attention"]["x"]["weights"]
        assert max(weights, key=weights.get) == f"s{answer}"
        assert weights[f"s{answer}"] > 0.6


def make_tokens(backbone: Backbone, episode: Any) -> Any:
    from promptprior.backbone import training_tokens

    return training_tokens(backbone, episode.task, episode.shots.dev)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"rank": 0}, "rank 0"), ({"temperature": 0.0}, "temperature 0"), ({"attention_rate": -1.0}, "attention rate -1")],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        make_method("attempt", options)

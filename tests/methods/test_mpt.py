"""MPT end to end on a tiny model; faults of other implementations are checks here."""

from dataclasses import replace
from typing import Any

import peft
import pytest
import torch

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.fit import RunControl, fit, make_run_context
from promptprior.methods import make_method
from promptprior.methods.from_sources.mpt import Mpt
from promptprior.methods.from_sources.spot import Spot
from promptprior.methods.published import published_options, published_settings
from promptprior.methods.run_context import RunContext
from promptprior.methods.shared.curves import sample_losses
from promptprior.objectives.distillation import Distilled
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.decomposed import Decomposed
from promptprior.rules.optimiser import stage_rate
from promptprior.tasks.sampling.draws import StochasticDraws
from promptprior.train import Run, Trained, train
from tests.backbone.tiny import tiny
from tests.world import always, choice_task, early, short

SOURCES = [choice_task("yes", always(0)), choice_task("early", early), choice_task("no", always(1), size=16)]
TARGETS = [choice_task("target", always(0)), choice_task("other", early)]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


def fitted(backbone: Backbone, sources: Any = SOURCES, settings: Settings | None = None, **options: Any) -> Prior:
    return fit(Mpt(**options), sources, backbone, settings or short())


@pytest.fixture(scope="module")
def prior(backbone: Backbone) -> Prior:
    return fitted(backbone)


class Spy:
    """A lab that keeps what it is asked to run."""

    def __init__(self, backbone: Backbone, settings: Settings) -> None:
        self.runs: dict[str, Run] = {}
        self.context = RunContext(backbone, settings, self.train)

    def train(self, run: Run, stage: str) -> Trained:
        self.runs[stage] = run
        return train(run)


def test_the_source_stage_is_teachers_then_a_distilled_student(backbone: Backbone) -> None:
    spy = Spy(backbone, short())
    Mpt(teacher_steps=5).fit(spy.context, SOURCES, 13)
    assert list(spy.runs) == ["teachers", "source"]
    assert (spy.runs["teachers"].steps, spy.runs["source"].steps) == (5, 12)
    objective = spy.runs["source"].objective
    assert isinstance(objective, Distilled)
    assert objective.strength == 0.9
    assert isinstance(spy.runs["source"].draws, StochasticDraws)
    five = replace(short(), source=replace(short().source, steps=5))
    ordered = sorted(SOURCES, key=lambda task: task.fingerprint)
    tuned = Spot().fit(Spy(backbone, five).context, ordered, 13).params["prompt"]
    assert torch.equal(objective.teachers, tuned)


def test_source_prompts_start_at_the_shared_prompt_where_pefts_start_near_nothing(backbone: Backbone) -> None:
    spy = Spy(backbone, short())
    Mpt().fit(spy.context, SOURCES, 13)
    begun = spy.runs["source"].params
    for prompt in Decomposed(4, backbone.width, 3).of_tasks(begun)[0]:
        assert torch.equal(prompt, begun["shared"][0])

    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_tasks=3, num_virtual_tokens=4, token_dim=backbone.width, num_layers=1,
        num_attention_heads=1, num_transformer_submodules=1,
    )  # fmt: skip
    embedding = peft.tuners.multitask_prompt_tuning.MultitaskPromptEmbedding(config, torch.nn.Embedding(96, 32))
    made = embedding(torch.arange(4)[None], torch.tensor([0]))
    assert float(made.detach().abs().mean() / embedding.embedding.weight.detach().abs().mean()) < 1e-3


def test_without_teachers_the_source_stage_is_plain(backbone: Backbone) -> None:
    spy = Spy(backbone, short())
    learned = make_method("mpt_no_distil").fit(spy.context, SOURCES, 13)
    assert list(spy.runs) == ["source"]
    assert type(spy.runs["source"].objective) is PromptObjective
    assert learned.diagnostics["teacher_loss"] is None
    same = Mpt(distil=False).fit(spy.context, SOURCES, 13).params
    none = Mpt(strength=0.0).fit(spy.context, SOURCES, 13).params
    for name, value in learned.params.items():
        assert torch.equal(same[name], value)
        torch.testing.assert_close(none[name], value, rtol=1e-3, atol=1e-4)


def test_teachers_change_what_is_learned_and_are_paid_for(backbone: Backbone, prior: Prior) -> None:
    plain = fitted(backbone, distil=False)
    assert not torch.allclose(prior.params["shared"], plain.params["shared"])
    rows = [p.header.diagnostics["cost"]["rows"] for p in (prior, plain)]  # type: ignore[index]
    teachers_train, student, teachers_teach = 12 * 2 * 3, 12 * 8, 12 * 8
    assert rows == [teachers_train + student + teachers_teach, student]


def test_the_order_of_sources_has_no_say(backbone: Backbone, prior: Prior) -> None:
    backwards = fitted(backbone, SOURCES[::-1])
    assert prior.header.diagnostics["sources"] == backwards.header.diagnostics["sources"]
    assert all(torch.equal(value, backwards.params[name]) for name, value in prior.params.items())


def test_the_prior_says_how_students_and_teachers_do(backbone: Backbone, prior: Prior) -> None:
    said = prior.header.diagnostics
    assert sorted(said["sources"]) == ["early", "no", "yes"]  # type: ignore[arg-type]
    context = make_run_context(backbone, short(), RunControl())
    pools = context.mixture(sorted(SOURCES, key=lambda task: task.fingerprint), 13)
    prompts = Decomposed(4, backbone.width, 3).of_tasks(prior.params)[0]
    assert said["student_loss"] == pytest.approx(sample_losses(backbone, prompts, pools), rel=1e-4)
    started = sample_losses(backbone, context.initial_prompt(13, "mpt").expand(3, -1, -1), pools)
    assert sum(said["student_loss"]) < sum(started)  # type: ignore[arg-type]
    assert sum(said["teacher_loss"]) < sum(started)  # type: ignore[arg-type]


def test_targets_start_at_the_shared_prompt_times_the_mean_of_the_sources(backbone: Backbone, prior: Prior) -> None:
    context = make_run_context(backbone, short(), RunControl())
    initial = Mpt().init(context, [prior, prior], [make_episode(task, 2, 13) for task in TARGETS])
    [one], [other] = initial.parameterisation.of_tasks(initial.params)  # type: ignore[attr-defined]
    u, v = prior.params["u"][0].mean(0), prior.params["v"][0].mean(0)
    torch.testing.assert_close(one, prior.params["shared"][0] * torch.outer(u, v))
    assert torch.equal(one, other)


def test_shared_and_rank_one_parts_move_at_their_own_speed_at_every_rate(backbone: Backbone, prior: Prior) -> None:
    """The first step of Adam has the size of the rate."""
    for rate in (0.1, 0.3):
        spy = Spy(backbone, short())
        context = spy.context
        initial = Mpt(low_rank_speed=0.05).init(context, [prior], [make_episode(TARGETS[0], 4, 13)])
        settings = stage_rate(context.settings.target, (rate,), backbone.scale, initial.lr_multipliers)
        for name, expected in (("shared", rate * backbone.scale), ("u", rate * 0.05), ("v", rate * 0.05)):
            step = settings.at(0, name, initial.params[name]) * settings.scale
            assert float(step.flatten()[0]) == pytest.approx(expected, rel=1e-6)


def test_targets_together_share_one_prompt_that_stays_theirs(backbone: Backbone, prior: Prior) -> None:
    episodes = [make_episode(task, 2, seed) for task in TARGETS for seed in (13, 21)]
    initial = Mpt(joint_steps=4).init(make_run_context(backbone, short(), RunControl()), [prior] * 4, episodes)
    shared, u = initial.params["shared"], initial.params["u"]
    assert torch.equal(shared[0], shared[2])
    assert torch.equal(shared[1], shared[3])
    assert not torch.equal(shared[0], shared[1])
    assert not torch.equal(shared[0], prior.params["shared"][0])
    assert not torch.equal(u[0], u[2])
    assert initial.lr_multipliers["shared"] == 0
    done = adapt(Mpt(joint_steps=4), episodes, backbone, prior, short())
    assert done[0].trainable == 4 + backbone.width
    assert len(score_on_test(backbone, done, limit=4)) == 4


def test_adaptation_lowers_the_loss(backbone: Backbone, prior: Prior) -> None:
    [done] = adapt(Mpt(), [make_episode(TARGETS[0], 4, 13)], backbone, prior, short())
    losses = [point["train_loss"] for point in done.curve if point["train_loss"] is not None]
    assert losses[-1] < losses[0]
    assert done.trainable == 4 * backbone.width + 4 + backbone.width
    assert done.prompt.header.parameterisation == "direct"  # folded: a PEFT adapter like any other


def test_one_source_is_enough(backbone: Backbone) -> None:
    assert fitted(backbone, SOURCES[:1]).params["u"].shape[1] == 1


def test_published_settings_are_the_papers_absolute_rates() -> None:
    scale = 4.0
    settings = published_settings("mpt", scale, source_examples=64_000, target_examples=3_200)
    assert (settings.length, settings.mixture, settings.mixture_cap) == (100, "capped", 2**18)
    assert settings.source.learning_rates[0] * scale == pytest.approx(0.3)
    speed = published_options("mpt", scale)["low_rank_speed"]
    assert settings.source.learning_rates[0] * speed == pytest.approx(0.4)
    assert (settings.source.steps, settings.target.steps) == (10_000, 2_000)
    assert isinstance(make_method("mpt", published_options("mpt", scale)), Mpt)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strength": -1.0}, r"strength -1.0"),
        ({"low_rank_speed": -0.1}, r"speed -0.1 \(--options.low-rank-speed\)"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        make_method("mpt", options)

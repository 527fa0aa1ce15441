"""What work is said to cost, against what the backbone then reads, for every method."""

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch

from promptprior.adapt import adapt, make_episode, score_on_test
from promptprior.backbone import Backbone
from promptprior.backbone.engine import Meter
from promptprior.compare.plan import Plan, Tasks, cells
from promptprior.compare.schedule import WorkerContext, remaining_work
from promptprior.config.choices import DevFrom, ShotsAre
from promptprior.config.training import Settings, Training
from promptprior.cost import SCORED, SECOND_ORDER
from promptprior.cost_estimate import adapting_cost, source_cost, target_size, text_tokens
from promptprior.fit import fit
from promptprior.methods import METHODS, RunContext, make_method
from promptprior.rules import curvature, inner, maml
from promptprior.tasks.sampling.draws import k_shot
from promptprior.tasks.task import Task
from promptprior.train import Run, Trained, train
from tests.backbone.tiny import tiny
from tests.world import choice_task, early, short


def longer(task: Task) -> Task:
    """A task whose texts are longer than a prompt."""
    examples = {s: tuple(replace(e, text=f"Is {e.text} late?") for e in task.split(s)) for s in ("train", "test")}
    return replace(task, examples=examples)


SOURCES = [longer(choice_task(f"source{i}", early)) for i in range(4)]
TARGET = longer(choice_task("target", early, choices=("yes", "no", "nobody knows")))
OPTIONS: dict[str, list[dict[str, object]]] = {
    "multitask_long": [{"times": 3}],
    "spot": [{}, {"probe_steps": 0}],
    "prompt_arithmetic": [{}, {"scales": (0.5, 1.0)}, {"top": 0}],
    "attempt": [{}, {"start": "fresh"}, {"attention_steps": 8}, {"joint_steps": 10}],
    "mpt": [{}, {"teacher_steps": 60}, {"joint_steps": 10}],
    "bmtpt": [{}, {"budget": "steps"}, {"budget": "batch"}, {"ensemble": True}, {"joint_steps": 20}],
    "bmtpt_predictive": [{}, {"particles": 2}],
    "maml": [{}, {"budget": "updates"}, {"inner_steps": 4}, {"parameterisation": "bank"}],
    "reptile": [{}, {"budget": "updates"}],
    "imaml": [{}, {"solve_steps": 6}],
    "tpt": [{}, {"start": "sources"}, {"rule": "svgd", "rule_options": {"particles": 2}}, {"rule": "maml"}],
    "tpt_as_released": [{"bank_size": 40, "retrieve": 8, "task_tokens": 8}],
    "lora": [{"rank": 2}],
    "in_context": [{"separator": " "}],
    "ridge_prior": [{"most_classes": 2}],
    "context_tuning_prompt": [{"separator": " ", "most": 3}],
}
CASES = [(name, options) for name in METHODS for options in OPTIONS.get(name, [{}])]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@dataclass
class Weighing(Meter):
    """A meter that also knows which tokens are of Hessian products."""

    is_second_order: bool = False

    def add(self, tokens: int) -> None:
        before = self.weighted
        super().add(tokens)
        if self.is_second_order:
            self.weighted = before + SECOND_ORDER * tokens


@pytest.fixture
def weighing(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    meter = Weighing()

    def marked(*inputs: Any) -> Any:
        meter.is_second_order = True
        try:
            return curvature_product(*inputs)
        finally:
            meter.is_second_order = False

    curvature_product = curvature.hessian_product
    for module in (curvature, inner, maml):
        monkeypatch.setattr(module, "hessian_product", marked, raising=False)
    return replace(backbone, meter=meter)


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{'-'.join(o)}" for n, o in CASES])
def test_work_costs_what_is_said_within_30_percent(weighing: Backbone, name: str, options: dict[str, object]) -> None:
    method = make_method(name, options)
    settings = Settings(
        length=8,
        source=Training(steps=24, batch_size=16),
        target=Training(steps=20, batch_size=8, learning_rates=(0.1, 0.3), eval_every=8, eval_steps=(1, 2)),
    )
    meter, prior = cast(Weighing, weighing.meter), None
    if method.needs_sources:
        stages: list[float] = []

        def train_stage(run: Run, stage: str) -> Trained:
            before = meter.weighted
            done = train(run)
            stages.append(meter.weighted - before)
            return done

        monkey = RunContext(weighing, settings, train_stage)
        method.source_recipe().fit(monkey, SOURCES, 13)  # what it reads beside its training is diagnostics
        said = source_cost(method, text_tokens(weighing, SOURCES), len(SOURCES), settings)
        assert 0.7 < said / sum(stages) < 1.3
        prior = fit(method, SOURCES, weighing, replace(settings, source=replace(settings.source, steps=1)))
    before = meter.weighted
    adapted = adapt(method, [make_episode(TARGET, 6, 13)], weighing, prior, settings)
    score_on_test(weighing, adapted, 24)
    said = adapting_cost(method, target_size(weighing, TARGET), 6, settings, tested=24)
    read = meter.weighted - before  # nothing, where the answer is constant
    assert 0.7 * read <= said <= 1.3 * read


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize(
    ("name", "options", "k"),
    [
        ("zero_shot", {}, 6),
        ("in_context", {"separator": " "}, 3),
        ("in_context", {"separator": " "}, 6),
        ("in_context", {"separator": " "}, 10),
        ("in_context", {"separator": " ", "most": 2}, 6),
        ("in_context_contextual", {"separator": " "}, 6),
        ("linear_probe", {}, 6),
        ("probe_mixture", {}, 6),
        ("prompt_tuning", {}, 6),
        ("lora", {"rank": 2}, 6),
        ("mpt", {"joint_steps": 10}, 6),
        ("bmtpt_predictive", {"particles": 2}, 6),
    ],
)
def test_folds_cost_what_is_said_within_30_percent(
    weighing: Backbone, name: str, options: dict[str, object], k: int, folds: int
) -> None:
    method, meter = make_method(name, options), cast(Weighing, weighing.meter)
    target = Training(steps=20, batch_size=8, learning_rates=(0.1, 0.3))
    settings = Settings(length=8, source=Training(steps=1, batch_size=16), target=target, folds=folds)
    prior = fit(method, SOURCES, weighing, settings) if method.needs_sources else None
    before = meter.weighted
    adapted = adapt(method, [make_episode(TARGET, k, 13)], weighing, prior, settings)
    score_on_test(weighing, adapted, 24)
    said = adapting_cost(method, target_size(weighing, TARGET), k, settings, tested=24)
    read = meter.weighted - before  # nothing, where the answer is constant
    assert 0.7 * read <= said <= 1.3 * read


def test_copies_are_the_variants_that_are_adapted() -> None:
    settings = short()
    assert make_method("bmtpt", {"prior_width": [1, 2, 3]}).workload(settings).adaptation_copies == 3
    assert make_method("bmtpt_no_prior").workload(settings).adaptation_copies == 1
    assert make_method("multitask").workload(settings).adaptation_copies == 1


@pytest.mark.parametrize("dev_limit", [None, 1, 3, 100])
@pytest.mark.parametrize("k", [1, 3, 8, 100])
@pytest.mark.parametrize(("shots_are", "dev_from"), [("class", "train"), ("total", "train"), ("total", "validation")])
def test_shots_are_counted_as_a_draw_would_have_them(
    backbone: Backbone, k: int, dev_limit: int | None, shots_are: ShotsAre, dev_from: DevFrom
) -> None:
    task = choice_task("one", early, size=24)
    task = replace(task, examples={**task.examples, "validation": choice_task("two", early, size=8).split("train")})
    shots, size = k_shot(task, k, 13, dev_limit, shots_are, dev_from), target_size(backbone, task)
    size = replace(size, room=None)  # so that all are shown
    shown, ranked = len(shots.train) * size.text_tokens, size.ranked_tokens
    read = SCORED * (2 * shown + ranked * (len(shots.dev) + 5))  # demonstrations stand before dev and before test
    said = adapting_cost(
        make_method("in_context"), size, k, short(dev_limit=dev_limit, shots_are=shots_are, dev_from=dev_from), tested=5
    )
    assert said == pytest.approx(read)


def test_an_estimate_draws_no_shots(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("shots were drawn")

    monkeypatch.setattr("promptprior.tasks.sampling.draws.k_shot", refuse)
    task = choice_task("one", early)
    plan = Plan(methods=("prompt_tuning",), targets=("one",), shots=(2, 4), seeds=(1, 2, 3), settings=short())
    context = WorkerContext(plan, Tasks((), (task,), {}), backbone)
    (*groups,) = remaining_work(context, cells(plan, context.tasks, backbone), ())
    assert sum(work.tokens for work in groups) > 0

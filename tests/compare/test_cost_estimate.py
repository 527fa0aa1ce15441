"""What a fit is said to cost, against what the backbone then counts."""

import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.compare.cost_estimate import SCORED, adapting_cost, source_cost, target_size
from promptprior.compare.plan import Plan, Tasks, cells
from promptprior.compare.schedule import WorkerContext, remaining_work
from promptprior.config.training import Training
from promptprior.fit import fit
from promptprior.methods import make_method
from promptprior.tasks.sampling.draws import k_shot
from tests.backbone.tiny import tiny
from tests.world import choice_task, early, short

OPTIONS = {
    "multitask": {},
    "multitask_long": {"times": 3},
    "spot": {},
    "bmtpt": {"particles": 4},
    "bmtpt_chains": {"particles": 2},
    "bmtpt_single": {},
    "reptile": {},
    "maml": {},
    "tpt": {"bank_size": 8},
    "mpt": {},
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny("llama", torch.float32)


@pytest.mark.parametrize(("name", "options"), OPTIONS.items(), ids=list(OPTIONS))
def test_a_fit_costs_about_what_is_said(backbone: Backbone, name: str, options: dict[str, object]) -> None:
    method, settings = make_method(name, options), short(source=Training(steps=36, batch_size=8))
    sources = [choice_task("one", early), choice_task("two", early)]
    counted = fit(method, sources, backbone, settings).header.diagnostics["cost"]
    assert isinstance(counted, dict)
    said = method.source_passes(settings) * source_cost(backbone, sources, settings.source, settings.length)
    assert 0.6 < said / counted["tokens"] < 1.5


def test_copies_are_the_variants_that_are_adapted() -> None:
    settings = short()
    assert make_method("bmtpt", {"prior_width": [1, 2, 3]}).adaptation_copies(settings) == 3
    assert make_method("bmtpt_no_prior").adaptation_copies(settings) == 1
    assert make_method("multitask").adaptation_copies(settings) == 1


@pytest.mark.parametrize("dev_limit", [None, 1, 3, 100])
@pytest.mark.parametrize("k", [1, 3, 8, 100])
def test_shots_are_counted_as_a_draw_would_have_them(backbone: Backbone, k: int, dev_limit: int | None) -> None:
    task = choice_task("one", early, size=24)
    shots, size = k_shot(task, k, 13, dev_limit), target_size(backbone, task)
    read = SCORED * size.text_tokens * (len(shots.train) + len(shots.dev) + 5)
    said = adapting_cost(make_method("in_context"), size, k, short(dev_limit=dev_limit), tested=5)
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

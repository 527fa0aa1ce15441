"""What a fit is said to cost, against what the backbone then counts."""

import pytest
import torch

from promptprior.backbone import Backbone
from promptprior.compare.cost_estimate import source_cost, source_passes, ways
from promptprior.config.training import Training
from promptprior.fit import fit
from promptprior.methods import make_method
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
    said = source_passes(method) * source_cost(backbone, sources, settings.source, settings.length)
    assert 0.6 < said / counted["tokens"] < 1.5


def test_ways_are_the_variants_that_are_adapted() -> None:
    assert ways(make_method("bmtpt", {"prior_width": [1, 2, 3]})) == 3
    assert ways(make_method("bmtpt_no_prior")) == 1
    assert ways(make_method("multitask")) == 1

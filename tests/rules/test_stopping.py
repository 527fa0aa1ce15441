"""Copies that stop by themselves, against one run that is read at the step where each of them stops."""

import pytest
import torch

from promptprior.rules.averaging import Averaging
from promptprior.rules.rule import answer
from promptprior.rules.stopping import StopCopies
from tests.rules.test_averaging import RULE, STEPS, states


@pytest.mark.parametrize("rule", [RULE, Averaging(RULE, 0.7), Averaging(RULE, None, 3)], ids=["plain", "ema", "swa"])
@pytest.mark.parametrize("stops", [(0, 4), (STEPS, 1), (2, 2)])
def test_each_copy_answers_as_after_its_own_last_step(rule: object, stops: tuple[int, int]) -> None:
    going, stopping = states(rule), StopCopies(rule, stops)  # type: ignore[arg-type]
    for state in states(stopping):
        ours = answer(stopping, state)["prompt"]
        for copy, stop in enumerate(stops):
            at = min(state.step, stop)
            assert torch.equal(ours[copy], answer(rule, going[at])["prompt"][copy])  # type: ignore[arg-type]
            assert torch.equal(state.params["prompt"][copy], going[at].params["prompt"][copy])


def test_a_stopped_copy_stays_finite_where_it_would_have_run_away() -> None:
    """Its params no longer move, whatever the rule remembers of it."""
    stopping = StopCopies(RULE, (1, 1))
    *_, before, last = states(stopping)
    assert torch.equal(before.params["prompt"], last.params["prompt"])

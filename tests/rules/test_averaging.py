"""Averages of params: against a plain loop, in the training loop, through checkpoints and around other wrappers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from promptprior.errors import SpecError
from promptprior.notation import Params, Tensor
from promptprior.rules.averaging import Averaging
from promptprior.rules.descent import Descent
from promptprior.rules.optimiser import AdamW, Rate, Sgd
from promptprior.rules.rule import Info, Rule, State, answer
from promptprior.tasks.sampling.batch import Batch
from promptprior.train import Trained, train
from tests.rules.meta_toys import Toy, numbers, wave
from tests.test_train import Killed, assert_same, killing, real_run, walk

RULE = Descent(AdamW(Rate((0.1,))))
BATCH, TOY, STEPS = numbers([[1, 4], [2]]), Toy(wave), 6


def start() -> Params:
    return {"prompt": torch.randn(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}


def states(rule: Rule) -> list[State]:
    """Before the first step and after every step."""
    all_states = [rule.init(start())]
    for _ in range(STEPS):
        all_states.append(rule.step(all_states[-1], BATCH, TOY)[0])
    return all_states


@pytest.mark.parametrize("first_step", [1, 3])
@pytest.mark.parametrize("decay", [None, 0.0, 0.7])
def test_averages_are_those_of_a_plain_loop(decay: float | None, first_step: int) -> None:
    plain = [state.params["prompt"] for state in states(RULE)]
    expected: list[Tensor] = []
    for step, value in enumerate(plain):
        if step <= first_step:
            expected.append(value)
        elif decay is None:
            expected.append(torch.stack(plain[first_step : step + 1]).mean(0))
        else:
            expected.append(decay * expected[-1] + (1 - decay) * value)
    rule = Averaging(RULE, decay, first_step)
    for state, moved, average in zip(states(rule), plain, expected, strict=True):
        assert torch.equal(state.params["prompt"], moved)  # the rule moves as it would without
        torch.testing.assert_close(answer(rule, state)["prompt"], average, rtol=1e-12, atol=0)
    assert not torch.equal(expected[-1], plain[-1]) or decay == 0


def test_plain_rules_answer_their_params() -> None:
    state = RULE.init(start())
    assert answer(RULE, state) is state.params


def test_wrappers_of_wrappers_keep_their_memories_apart() -> None:
    inner = Averaging(RULE, 0.5)
    for state, once in zip(states(Averaging(inner)), states(inner), strict=True):
        assert torch.equal(state.params["prompt"], once.params["prompt"])
        assert {n.removeprefix("rule/"): v for n, v in state.memory.items() if n.startswith("rule/")}.keys() == (
            once.memory.keys()
        )
    ema = [inner.answer(state)["prompt"] for state in states(inner)[1:]]
    twice = Averaging(inner)
    mean = answer(twice, states(twice)[-1])["prompt"]
    torch.testing.assert_close(mean, torch.stack(ema).mean(0), rtol=1e-12, atol=0)


def test_dev_judges_the_average_and_the_run_returns_it() -> None:
    """Params go 4, -4, 4, -4; their plain mean after steps 1, 2, 3 is -4, 0, -4/3, and dev likes 0 best."""
    run = walk(((4,), (-4,), (4,), (-4,)))
    done = train(replace(run, rule=Averaging(run.rule)))
    assert [line["dev_nll"] for line in done.history] == [[4.0], [4.0], [0.0], [1.33333]]
    assert done.params["prompt"].item() == 0
    assert done.best is not None
    assert done.best.step == (2,)
    assert done.answer["prompt"].item() == pytest.approx(-4 / 3)
    assert done.last["prompt"].item() == -4
    unselected = train(replace(run, rule=Averaging(run.rule), select=None))
    assert torch.equal(unselected.params["prompt"], unselected.answer["prompt"])


@dataclass(frozen=True)
class Noised:
    """An objective whose params carry noise that the step decides."""

    objective: Any
    seed: int

    def losses(self, params: Params, batch: Batch) -> Tensor:
        g = torch.Generator().manual_seed(self.seed)
        noised = {n: p + 0.01 * torch.randn(p.shape, generator=g).to(p) for n, p in params.items()}
        return self.objective.losses(noised, batch)

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> Iterable[Batch]:
        return self.objective.split(params, batch, share)


@dataclass(frozen=True)
class Noise:
    """A wrapper that remembers nothing: the rule it holds sees noised params."""

    rule: Rule

    def init(self, params: Params) -> State:
        return self.rule.init(params)

    def step(self, state: State, batch: Any, objective: Any) -> tuple[State, Info]:
        return self.rule.step(state, batch, Noised(objective, state.step))

    def answer(self, state: State) -> Params:
        return answer(self.rule, state)


WRAPPERS: dict[str, Callable[[Rule], Rule]] = {
    "average": lambda rule: Averaging(rule, 0.9),
    "average of averages": lambda rule: Averaging(Averaging(rule, 0.5), None, 3),
    "average of a noisy rule": lambda rule: Averaging(Noise(rule)),
    "noise around an average": lambda rule: Noise(Averaging(rule)),
}


def test_a_wrapper_without_memory_hands_all_through() -> None:
    for one, other in zip(states(Noise(Averaging(RULE))), states(Averaging(Noise(RULE))), strict=True):
        assert one.params.keys() == other.params.keys()
        assert one.memory.keys() == other.memory.keys()
        assert all(torch.equal(value, other.memory[name]) for name, value in one.memory.items())
        assert torch.equal(answer(Noise(Averaging(RULE)), one)["prompt"], other.memory["average/prompt"])
    assert not torch.equal(states(Noise(RULE))[-1].params["prompt"], states(RULE)[-1].params["prompt"])


@pytest.mark.parametrize("rule", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("deaths", [(1,), (4, 5)])
def test_a_killed_run_resumes_bit_for_bit(
    rule: Callable[[Rule], Rule], deaths: tuple[int, ...], tmp_path: Path
) -> None:
    run = replace(real_run(), rule=rule(real_run().rule))
    whole: Trained = train(run, tmp_path / "whole")
    for at in deaths:
        with pytest.raises(Killed):
            train(run, tmp_path / "killed", killing(at), checkpoint_seconds=0)
    resumed = train(run, tmp_path / "killed")
    assert_same(resumed, whole)
    assert torch.equal(resumed.answer["prompt"], whole.answer["prompt"])
    assert not torch.equal(whole.answer["prompt"], whole.last["prompt"])
    names = ("state.safetensors", "log.jsonl")
    assert all((tmp_path / "killed" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)


@pytest.mark.parametrize(("decay", "first_step"), [(1.0, 1), (-0.1, 1), (0.9, 0)])
def test_impossible_averages_are_refused(decay: float, first_step: int) -> None:
    with pytest.raises(SpecError, match=rf"decay {decay} from step {first_step} on \(decay, first_step\)"):
        Averaging(Descent(Sgd(Rate((0.1,)))), decay, first_step)

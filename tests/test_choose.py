"""The choice among adapted prompts: weights, temperatures and scores against slow twins."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from promptprior.adaptation.choose import (
    PULL,
    RESAMPLES,
    cross_validated,
    held_out_choice,
    mix,
    mixing_weights,
    prior_weights,
)
from promptprior.adaptation.held_out import HeldOut
from promptprior.tasks.task import Example, Task
from tests.world import text_task

Answers = list[list[HeldOut]]


def held_out(nll: torch.Tensor, labels: list[int]) -> Answers:
    """Held-out answers of members with these NLL, [M, n, K]."""
    choices = tuple(f"c{k}" for k in range(nll.shape[-1]))
    examples = [Example(str(i), f"text {i}", choices[y], choices, y) for i, y in enumerate(labels)]
    lengths = (1,) * len(choices)
    return [[HeldOut(e, tuple(row), lengths) for e, row in zip(examples, own, strict=True)] for own in nll.tolist()]


def log_right(own: list[HeldOut], temperature: float = 1.0) -> torch.Tensor:
    """The log probability of each right answer, one by one."""
    return -torch.tensor(
        [replace(a, target_nll=tuple(v / temperature for v in a.target_nll)).right_nll for a in own],
        dtype=torch.float64,
    )


def accuracy(own: list[HeldOut]) -> float:
    return sum(min(range(len(a.target_nll)), key=a.target_nll.__getitem__) == a.example.label for a in own) / len(own)


def random_case(seed: int, members: int = 3, examples: int = 40, choices: int = 3) -> Answers:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(choices, (examples,), generator=g)
    nll = 2 * torch.randn(members, examples, choices, generator=g, dtype=torch.float64)
    for m in range(members):  # member m knows the answer better the higher m is
        nll[m, torch.arange(examples), labels] -= m
    return held_out(nll, labels.tolist())


@pytest.mark.parametrize("trained", [(False, False, False), (False, False, True), (True, False, True)])
@pytest.mark.parametrize("seed", range(2))
def test_weights_are_the_best_point_of_the_simplex(seed: int, trained: tuple[bool, ...]) -> None:
    case, prior = random_case(seed), prior_weights(trained)
    table = torch.stack([log_right(own) for own in case])

    def loss(free: np.ndarray) -> float:
        weights = torch.softmax(torch.tensor([0.0, *free], dtype=torch.float64), 0)
        return -float(torch.logsumexp(table + weights.log()[:, None], 0).sum() + 3 * PULL * prior @ weights.log())

    starts = ([0.0, 0.0], [3.0, 3.0], [-3.0, 3.0])
    best = min(minimize(loss, start, method="Nelder-Mead", options={"maxiter": 4000}).fun for start in starts)
    weights = mixing_weights(table, prior)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-9)
    own = -float(torch.logsumexp(table + weights.log()[:, None], 0).sum() + 3 * PULL * prior @ weights.log())
    assert own == pytest.approx(best, abs=1e-4)


def test_candidates_that_did_not_train_share_the_weight_of_one() -> None:
    """Five times the same answers count as one where the sixth is as good and others' errors are not its own."""
    assert prior_weights([False] * 5 + [True]).tolist() == pytest.approx([0.1] * 5 + [0.5])
    assert prior_weights([True, True]).tolist() == pytest.approx([0.5, 0.5])
    first, second, _ = random_case(3)
    blend = mix([first] * 5 + [second], [False] * 5 + [True])
    of_two = mix([first, second], [True, True])
    assert blend.weights[-1] == pytest.approx(of_two.weights[-1], abs=0.08)
    choice = held_out_choice(task_of([first]), [first] * 5 + [second], [False] * 5 + [True])
    assert choice.blend == blend
    assert list(choice.mixed) == cross_validated([first] * 5 + [second], [False] * 5 + [True])


def test_a_member_that_is_too_sure_gets_a_temperature() -> None:
    [own] = random_case(0, members=1)
    sure = [replace(a, target_nll=tuple(2 * v for v in a.target_nll)) for a in own]

    def loss(octave: float) -> float:
        return octave**2 / 2 - float(log_right(sure, 2**octave).sum())

    [temperature] = mix([sure]).temperatures
    best = minimize_scalar(loss, bounds=(-3, 7), method="bounded").x
    assert abs(np.log2(temperature) - best) <= 1 / 8 + 1e-6  # the nearest point of the grid
    [few] = mix([[a for a in sure if log_right([a]).exp() > 0.9][:4]]).temperatures
    assert 1 / 4 < few < 1  # four right answers are no proof of certainty


def test_examples_with_other_numbers_of_choices_are_blended() -> None:
    """As if the choices that one lacks were impossible."""
    case = random_case(0)
    cut = [[replace(a, target_nll=a.target_nll[:2]) if a.example.label != 2 else a for a in own] for own in case]
    never = [[replace(a, target_nll=(*a.target_nll, 1e9)[:3]) for a in own] for own in cut]
    assert mix(cut) == mix(never)
    assert len(mix(cut).answer([own[0] for own in cut]).target_nll) == len(cut[0][0].target_nll)


@pytest.mark.slow
def test_two_halves_are_better_than_each_and_a_useless_member_gets_little() -> None:
    labels = [0, 1] * 300
    nll = torch.zeros(3, 600, 2, dtype=torch.float64)
    for i, y in enumerate(labels):
        nll[i // 300, i, 1 - y] += 4  # members 0 and 1 each know one half of the examples, member 2 always errs
        nll[2, i, y] += 4
    case = held_out(nll, labels)
    weights = dict(zip(mix(case).members, mix(case).weights, strict=True))
    assert weights[0] == pytest.approx(weights[1], abs=0.02)
    assert weights.get(2, 0.0) < 0.03
    assert accuracy([mix(case).answer(given) for given in zip(*case, strict=True)]) == 1.0


def test_the_blends_score_comes_from_weights_that_have_not_seen_the_example() -> None:
    """Labels are noise: fitted weights flatter themselves in sample, and must not out of it."""
    scores = []
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        nll = 3 * torch.randn(6, 30, 2, generator=g, dtype=torch.float64)
        case = held_out(nll, torch.randint(2, (30,), generator=g).tolist())
        fitted = mix(case)
        inside = accuracy([fitted.answer(given) for given in zip(*case, strict=True)])
        scores.append((inside, accuracy(cross_validated(case))))
    inside, outside = np.mean(scores, axis=0)
    assert inside > outside + 0.02
    assert abs(outside - 0.5) < 0.05


# What is chosen ------------------------------------------------------------------------------------------


def task_of(case: Answers) -> Task:
    """A task of these examples, with the classes that they have."""
    examples = tuple(answer.example for answer in case[0])
    names = examples[0].choices
    return Task("case", "multiple_choice", ("accuracy",), {"train": examples}, label_names=names)


def is_right(own: list[HeldOut]) -> np.ndarray:
    return np.array([int(np.argmin(answer.target_nll)) == answer.example.label for answer in own], dtype=float)


@pytest.mark.parametrize("examples", [20, 40])
@pytest.mark.parametrize("seed", range(10))
def test_the_blend_answers_unless_the_best_one_is_surely_ahead_of_it(seed: int, examples: int) -> None:
    """By means of right and wrong over resamples, all at once."""
    case = random_case(seed, examples=examples)
    if seed % 2:  # one candidate knows nearly all, so that the others can only spoil its answers
        case[1] = [replace(a, target_nll=tuple(float(c != a.example.label) for c in range(3))) for a in case[0]]
    choice = held_out_choice(task_of(case), case)
    scores = [accuracy(own) for own in case]
    assert choice.best == scores.index(max(scores))
    assert choice.blend == mix(case)
    assert choice.standings == pytest.approx([*scores, accuracy(cross_validated(case))])
    ahead = is_right(case[choice.best]) - is_right(cross_validated(case))
    places = np.random.default_rng(0).integers(0, len(ahead), (RESAMPLES, len(ahead)))
    assert choice.takes_blend == (np.quantile(ahead[places].mean(1), 0.025) <= 0)


def test_a_blend_that_is_surely_worse_does_not_answer() -> None:
    """Nine candidates err on every other example and are very sure of it; one is always right."""
    labels = [0, 1] * 40
    nll = torch.zeros(10, 80, 2, dtype=torch.float64)
    for i, y in enumerate(labels):
        nll[9, i, 1 - y] = 0.02  # hardly surer than chance, which no temperature of the grid makes up for
        nll[:9, i, 1 - y if i % 4 < 2 else y] = 4
    choice = held_out_choice(task_of(held_out(nll, labels)), held_out(nll, labels))
    assert (choice.best, choice.takes_blend) == (9, False)
    assert choice.standings[-1] < choice.standings[9] == 1.0


def test_of_equal_candidates_the_cheapest_is_the_best_one() -> None:
    [own] = random_case(0, members=1)
    choice = held_out_choice(task_of([own]), [own, own, own], may_blend=False)
    assert (choice.best, choice.takes_blend, choice.mixed, choice.blend.members) == (0, False, (), ())
    assert len(set(choice.standings)) == 1
    alone = held_out_choice(task_of([own]), [own])
    assert (alone.best, alone.takes_blend) == (0, False)


def test_free_text_goes_to_the_lowest_nll() -> None:
    task = text_task("shout", str.upper, size=4)
    answers = [[HeldOut(e, (nll,), (2,)) for e in task.split("train")] for nll in (3.0, 1.0, 2.0)]
    choice = held_out_choice(task, answers)
    assert (choice.best, choice.takes_blend, choice.mixed) == (1, False, ())
    assert choice.standings == pytest.approx([-1.5, -0.5, -1.0])

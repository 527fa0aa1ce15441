"""Which of several adapted prompts answers: the best on examples that it has not learned from, or all of them together.

Every candidate has answered the same held-out examples (`Adapted.out_of_fold`). Of the single ones the best score wins,
then the simplest (candidates stand in order of cost). A blend averages probabilities of choices:

    p(y | x) = sum over candidates m of  w_m softmax(-nll_m(y | x) / T_m)

T_m minimises the held-out NLL of m alone (Guo et al. 2017, arXiv 1706.04599). w maximises the held-out likelihood of
the blend under a Dirichlet prior that pulls to equal weights, by EM (a linear opinion pool; stacking, Yao et al. 2018,
arXiv 1704.02030): few examples tell too little to let one candidate have it all (docs/log.md). The blend's own score
comes from folds of the held-out examples, each answered by weights that the others gave.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.folds import jackknife_error
from promptprior.adaptation.held_out import HeldOut, held_out_predictions
from promptprior.artifacts.blending import as_weights, blended
from promptprior.evaluate import mean_probability
from promptprior.notation import Float, Tensor
from promptprior.tasks.metrics import merit, score
from promptprior.tasks.task import Task

TEMPERATURES = tuple(2 ** (step / 4) for step in range(-8, 25))  # 1/4 to 64
EM_STEPS = 300
PULL = 4.0  # examples that the prior is worth for each candidate
LEAST_WEIGHT = 0.02  # a member with less is left out: it costs its forward pass at every answer
FOLDS = 5  # of the held-out examples, for the score of the blend


@dataclass(frozen=True)
class Mix:
    """What a blend is made of: members by their place among the candidates, weights that sum to one, temperatures."""

    members: tuple[int, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]

    def answer(self, given: Sequence[HeldOut]) -> HeldOut:
        """One example as the blend answers it, from what each candidate answered."""
        scaled = [
            [nll / t for nll in given[m].target_nll] for m, t in zip(self.members, self.temperatures, strict=True)
        ]
        return replace(given[0], target_nll=tuple(mean_probability(scaled, self.weights)))


def mix(answers: Sequence[Sequence[HeldOut]]) -> Mix:
    """The weights and temperatures that these answers prefer, `answers[m][i]` to example i by candidate m."""
    temperatures, logs = [], []
    for own in answers:
        table = -torch.tensor([answer.target_nll for answer in own], dtype=torch.float64)  # [n, K]
        right = torch.tensor([[answer.example.label or 0] for answer in own])  # [n, 1]
        scaled = table / torch.tensor(TEMPERATURES, dtype=torch.float64)[:, None, None]  # [T, n, K]
        each = scaled.log_softmax(-1).gather(-1, right.expand(len(TEMPERATURES), -1, -1))[..., 0]  # [T, n]
        best = int(each.sum(1).argmax())
        temperatures.append(TEMPERATURES[best])
        logs.append(each[best])
    weights = mixing_weights(torch.stack(logs))
    members = [m for m in range(len(weights)) if weights[m] >= LEAST_WEIGHT]
    kept = weights[members] / weights[members].sum()
    return Mix(tuple(members), tuple(kept.tolist()), tuple(temperatures[m] for m in members))


def mixing_weights(log_right: Float[Tensor, "M n"]) -> Float[Tensor, " M"]:
    """Weights on the simplex that maximise, by EM,

    sum over examples of log(sum over m of w_m p_m(right answer)) + PULL * sum over m of log w_m
    """
    weights = torch.full(log_right.shape[:1], 1 / len(log_right), dtype=torch.float64)
    for _ in range(EM_STEPS):
        counts = torch.softmax(log_right + weights.log()[:, None], dim=0).sum(1) + PULL
        weights = counts / counts.sum()
    return weights


def cross_validated(answers: Sequence[Sequence[HeldOut]]) -> list[HeldOut]:
    """Every example as the blend answers it by weights that the other folds gave."""
    count = len(answers[0])
    order = np.random.default_rng(0).permutation(count).tolist()
    mixed = list(answers[0])
    for fold in range(min(FOLDS, count)):
        own = order[fold::FOLDS]
        others = [i for i in order if i not in own] or own
        fitted = mix([[each[i] for i in others] for each in answers])
        for i in own:
            mixed[i] = fitted.answer([each[i] for each in answers])
    return mixed


@dataclass(frozen=True)
class LeaderboardLine:
    """A line of the leaderboard: held-out score (None for free text) with its standard error, NLL in nats, seconds, and
    the weight in the blend."""

    method: str
    score: float | None
    error: float | None
    nll: float
    seconds: float
    weight: float


def standing(task: Task, answers: Sequence[HeldOut], method: str, seconds: float, weight: float) -> LeaderboardLine:
    """How a candidate, or the blend, stands by its held-out answers."""
    predictions = held_out_predictions(task, answers)
    value = score(task, [a.example for a in answers], predictions)[task.metrics[0]] if predictions else None
    nll = sum(answer.right_nll for answer in answers) / len(answers)
    return LeaderboardLine(method, value, jackknife_error(task, answers), nll, seconds, weight)


def choose_candidate(name: str, candidates: Sequence[Adapted], may_blend: bool = True) -> Adapted:
    """The best candidate of one episode, or their blend, as the prompt of method `name`; its header has a leaderboard.

    Candidates stand in order of cost. The blend is taken unless the best single candidate has both the better held-out
    score and the lower NLL; free text, which has no choices to average over, goes to the candidate of the lowest NLL.
    """
    task = candidates[0].episode.task
    given = [{answer.example.id: answer for answer in a.out_of_fold} for a in candidates]
    common = [example for example in given[0] if all(example in own for own in given)]
    answers = [[own[example] for example in common] for own in given]
    may_blend = may_blend and task.is_choice and len(candidates) > 1
    fitted = mix(answers) if may_blend else Mix((), (), ())
    weight = dict(zip(fitted.members, fitted.weights, strict=True))
    board = [
        standing(task, own, a.prompt.header.method, a.cost.seconds, weight.get(m, 0.0))
        for m, (a, own) in enumerate(zip(candidates, answers, strict=True))
    ]

    def rank(line: LeaderboardLine) -> float:
        return -line.nll if line.score is None else merit(task.metrics[0], line.score)

    best = max(range(len(board)), key=lambda m: (rank(board[m]), -m))
    chosen, base, seconds = board[best], candidates[best], sum(line.seconds for line in board)
    if len(fitted.members) > 1:
        together = standing(task, cross_validated(answers), name, seconds, 1.0)
        board.append(together)
        chosen = chosen if rank(chosen) > rank(together) and chosen.nll < together.nll else together
    takes_blend = chosen is not board[best]
    header = base.prompt.header
    about = {"chosen": name if takes_blend else chosen.method, "leaderboard": [vars(line) for line in board]}
    dev = {**header.scores["dev"], "dev_score": chosen.score, "dev_error": chosen.error}  # type: ignore[dict-item]
    header = replace(header, method=name, scores={**header.scores, "dev": dev, "auto": about})
    prompt, trainable = replace(base.prompt, header=header), base.trainable
    if takes_blend:
        members = [candidates[m] for m in fitted.members]
        weights, temperatures = as_weights(fitted.weights), as_weights(fitted.temperatures)
        prompt = blended(header, [a.prompt for a in members], weights, temperatures)
        trainable = sum(a.trainable for a in members)
    return replace(
        base,
        prompt=prompt,
        dev_score=chosen.score,
        dev_error=chosen.error,
        cost=sum((a.cost for a in candidates[1:]), candidates[0].cost),
        trainable=trainable,
    )

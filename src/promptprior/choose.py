"""Which of several adapted prompts answers: the best on examples that it has not learned from, or all of them together.

Every candidate has answered the same held-out examples (`Adapted.out_of_fold`), out of fold or on dev. The best single
one has the best score, then the simplest wins (candidates stand in order of cost). The blend averages probabilities:

    p(y | x) = sum over candidates m of  w_m softmax(-nll_m(y | x) / T_m)

T_m minimises the held-out NLL of m alone (Guo et al. 2017, arXiv 1706.04599), w the held-out NLL of the blend, by EM
over the simplex (a linear opinion pool; stacking, Yao et al. 2018, arXiv 1704.02030). Its own score comes from folds of
the held-out examples, each answered by weights that the others gave.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from promptprior.adapted import Adapted
from promptprior.artifacts.blending import as_weights, blended
from promptprior.evaluate import mean_probability
from promptprior.notation import Float, Tensor
from promptprior.tasks.metrics import Prediction, merit, score
from promptprior.tasks.task import Example, Task

TEMPERATURES = tuple(2 ** (step / 4) for step in range(-8, 25))  # 1/4 to 64
EM_STEPS = 300
LEAST_WEIGHT = 0.02  # a member with less is left out: it costs its forward pass at every answer
FOLDS = 5  # of the held-out examples, for the score of the blend
RESAMPLES = 500


@dataclass(frozen=True)
class CandidateAnswers:
    """Held-out answers of all candidates: `nll[m][i]` has the NLL in nats of every choice of example i."""

    task: Task
    examples: tuple[Example, ...]
    nll: tuple[tuple[tuple[float, ...], ...], ...]

    def score(self, answers: Sequence[Sequence[float]], places: Sequence[int] | None = None) -> float:
        """The task's first metric of these NLL, or of those of some examples."""
        chosen = range(len(self.examples)) if places is None else places
        predictions = [_prediction(self.examples[i], answers[i]) for i in chosen]
        return score(self.task, [self.examples[i] for i in chosen], predictions)[self.task.metrics[0]]

    def right(self, member: int, temperature: float = 1.0) -> Float[Tensor, " n"]:
        """The log probability of each right answer by one candidate, normalised over the choices."""
        rows = [torch.log_softmax(-torch.tensor(nll, dtype=torch.float64) / temperature, 0) for nll in self.nll[member]]
        return torch.stack([row[e.label or 0] for row, e in zip(rows, self.examples, strict=True)])


def _prediction(example: Example, nll: Sequence[float]) -> Prediction:
    best = min(range(len(nll)), key=nll.__getitem__)
    return Prediction(example.id, example.choices[best], best, tuple(nll), (1,) * len(nll))


@dataclass(frozen=True)
class Mix:
    """What a blend is made of: members by their place among the candidates, weights that sum to one, temperatures."""

    members: tuple[int, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]

    def nll(self, held_out: CandidateAnswers, i: int) -> list[float]:
        """Minus the log of each choice's mean probability for held-out example i."""
        scaled = [
            [value / t for value in held_out.nll[m][i]] for m, t in zip(self.members, self.temperatures, strict=True)
        ]
        return mean_probability(scaled, self.weights)


def mix(held_out: CandidateAnswers, places: Sequence[int] | None = None) -> Mix:
    """The weights and temperatures that some held-out examples prefer (by default all)."""
    at = torch.tensor(range(len(held_out.examples)) if places is None else list(places))
    temperatures, logs = [], []
    for m in range(len(held_out.nll)):
        each = [held_out.right(m, t)[at] for t in TEMPERATURES]
        best = max(range(len(each)), key=lambda t: float(each[t].sum()))
        temperatures.append(TEMPERATURES[best])
        logs.append(each[best])
    table = torch.stack(logs)  # [M, n]
    weights = mixing_weights(table)
    members = [m for m in range(len(weights)) if weights[m] >= LEAST_WEIGHT]
    kept = weights[members] / weights[members].sum()
    return Mix(tuple(members), tuple(kept.tolist()), tuple(temperatures[m] for m in members))


def mixing_weights(log_right: Float[Tensor, "M n"]) -> Float[Tensor, " M"]:
    """Weights on the simplex that maximise the mean log of the mixed probability of the right answers, by EM."""
    weights = torch.full(log_right.shape[:1], 1 / len(log_right), dtype=torch.float64)
    for _ in range(EM_STEPS):
        weights = torch.softmax(log_right + weights.log()[:, None], dim=0).mean(1)
    return weights


def cross_validated(held_out: CandidateAnswers) -> list[list[float]]:
    """The blend's NLL of every held-out example, by weights that the other folds gave."""
    count = len(held_out.examples)
    order = np.random.default_rng(0).permutation(count)
    answers: list[list[float]] = [[] for _ in range(count)]
    for fold in range(min(FOLDS, count)):
        own = order[fold::FOLDS]
        others = [int(i) for i in order if i not in set(own.tolist())]
        fitted = mix(held_out, others or None)
        for i in own.tolist():
            answers[i] = fitted.nll(held_out, i)
    return answers


@dataclass(frozen=True)
class Standing:
    """A line of the leaderboard: held-out score with its standard error, NLL in nats, seconds, weight in the blend."""

    method: str
    score: float
    error: float
    nll: float
    seconds: float
    weight: float


@dataclass(frozen=True)
class Choice:
    """The prompt that answers, the leaderboard it comes from, and the choice in a sentence."""

    adapted: Adapted
    leaderboard: tuple[Standing, ...]
    says: str


def held_out_answers(candidates: Sequence[Adapted]) -> CandidateAnswers:
    """What all candidates of one episode have answered held out, on the examples that every one of them answered."""
    given = [{answer.example.id: answer.target_nll for answer in a.out_of_fold} for a in candidates]
    every = (answer.example for answer in candidates[0].out_of_fold)
    examples = tuple(example for example in every if all(example.id in own for own in given))
    nll = tuple(tuple(own[example.id] for example in examples) for own in given)
    return CandidateAnswers(candidates[0].episode.task, examples, nll)


def choose(name: str, candidates: Sequence[Adapted], blend: bool = True) -> Choice:
    """The best candidate, or their blend, as the prompt of method `name`; candidates in order of cost, of one episode.

    The blend is taken unless it scores lower than the best single candidate.
    """
    held_out, task = held_out_answers(candidates), candidates[0].episode.task
    metric, fitted = task.metrics[0], mix(held_out)
    answers = [*held_out.nll, cross_validated(held_out)]
    resamples = np.random.default_rng(0).integers(0, len(held_out.examples), (RESAMPLES, len(held_out.examples)))
    weight = dict(zip(fitted.members, fitted.weights, strict=True))
    board = []
    for m, nll in enumerate(answers):
        right = [
            float(torch.log_softmax(-torch.tensor(row, dtype=torch.float64), 0)[e.label or 0])
            for row, e in zip(nll, held_out.examples, strict=True)
        ]
        spread = np.std([held_out.score(nll, places) for places in resamples.tolist()])
        is_blend = m == len(candidates)
        board.append(
            Standing(
                name if is_blend else candidates[m].prompt.header.method,
                held_out.score(nll),
                float(spread),
                -sum(right) / len(right),
                sum(a.cost.seconds for a in candidates) if is_blend else candidates[m].cost.seconds,
                1.0 if is_blend else weight.get(m, 0.0),
            )
        )
    *singles, blend_standing = board
    best = max(range(len(singles)), key=lambda m: (merit(metric, singles[m].score), -m))
    takes_blend = (
        blend and len(fitted.members) > 1 and merit(metric, blend_standing.score) >= merit(metric, singles[best].score)
    )
    chosen = blend_standing if takes_blend else singles[best]
    rows = [{**vars(standing)} for standing in (board if blend else singles)]
    shares = ", ".join(f"{singles[m].method} {w:.2f}" for m, w in weight.items())
    says = (
        f"{name}: {f'a blend of {shares}' if takes_blend else chosen.method}; held out {chosen.score:.3f} (standard "
        f"error {chosen.error:.3f}) on {len(held_out.examples)} examples"
    )
    base = candidates[best]
    header = replace(
        base.prompt.header,
        method=name,
        scores={"dev": {**base.prompt.header.scores["dev"], "dev_score": chosen.score}, "leaderboard": rows},  # type: ignore[dict-item]
    )
    if takes_blend:
        members = [candidates[m].prompt for m in fitted.members]
        prompt = blended(header, members, as_weights(fitted.weights), as_weights(fitted.temperatures))
    else:
        prompt = replace(base.prompt, header=header)
    cost = sum((a.cost for a in candidates[1:]), candidates[0].cost)
    trainable = sum(candidates[m].trainable for m in fitted.members) if takes_blend else base.trainable
    adapted = replace(base, prompt=prompt, dev_score=chosen.score, cost=cost, trainable=trainable)
    return Choice(adapted, tuple(board), says)

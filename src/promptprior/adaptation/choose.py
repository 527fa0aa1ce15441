"""Which of several adapted prompts answers: the best on examples that it has not learned from, or all of them together.

Every candidate has answered held-out examples (`held_out_of`), and all are judged by those that they have in common. Of
the single ones the best score wins, then the simplest (candidates stand in order of cost). A blend averages
probabilities of choices:

    p(y | x) = sum over candidates m of  w_m softmax(-nll_m(y | x) / T_m)

T_m minimises the held-out NLL of m alone (Guo et al. 2017, arXiv 1706.04599) under a prior of ours: log2 T is normal
around 0 with standard deviation 1, for sixteen examples would make a lucky candidate four times as sure. w maximises
the held-out likelihood of the blend under a Dirichlet prior, by EM (a linear opinion pool; stacking, Yao et al. 2018,
arXiv 1704.02030): few examples tell too little to let one candidate have it all. The prior's mean gives every candidate
that trained one share, and one share to all the others together, which read the same frozen model and err alike
(docs/log.md). The blend's own score comes from folds of the held-out examples, each answered by weights that the others
gave.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import inf

import numpy as np
import torch

from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.both_ways import runs_in
from promptprior.adaptation.folds import jackknife_error
from promptprior.adaptation.held_out import HeldOut, held_out_answers, held_out_predictions, held_out_score
from promptprior.artifacts.blending import blended
from promptprior.backbone import Backbone
from promptprior.evaluate import PromptRequest, answer_requests, mean_probability
from promptprior.notation import Float, Tensor
from promptprior.tasks.metrics import Prediction, merit, resampled_score
from promptprior.tasks.task import Example, Task

OCTAVES = tuple(step / 4 for step in range(-8, 25))  # log2 of the temperatures that are tried
TEMPERATURES = tuple(2**octave for octave in OCTAVES)  # 1/4 to 64
EM_STEPS = 300
PULL = 4.0  # examples that the prior is worth, times the candidates
LEAST_WEIGHT = 0.02  # a member with less is left out: it costs its forward pass at every answer
FOLDS = 5  # of the held-out examples, for the score of the blend
RESAMPLES = 500  # of the examples, for the interval of a gap

Lead = Callable[[Sequence[int]], float]
"""By how much one side is ahead of another on the examples at these places; ahead is positive whatever the metric."""


@dataclass(frozen=True)
class Candidate:
    """A prompt, and on the examples it is judged on the task's score (None for free text) and each one's NLL in nats.

    These are the examples that were answered out of fold; of a prompt without them, its dev shots.
    """

    adapted: Adapted
    score: float | None
    nll: float
    predictions: tuple[Prediction, ...]
    each_nll: tuple[float, ...]

    @property
    def method(self) -> str:
        """The method that adapted it."""
        return self.adapted.prompt.header.method

    @property
    def examples(self) -> tuple[Example, ...]:
        """What it is judged on."""
        return tuple(answer.example for answer in self.adapted.out_of_fold) or self.adapted.episode.shots.dev

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better. Six digits, as training logs them: the same prompt must not beat itself by rounding."""
        standing = 0.0 if self.score is None else merit(self.adapted.episode.task.metrics[0], self.score)
        return round(standing, 6), -float(f"{self.nll:.6g}")


@torch.no_grad()
def held_out_of(backbone: Backbone, adapted: Adapted) -> tuple[HeldOut, ...]:
    """What a prompt answered out of fold; without folds what it answers to its dev shots, which chose its step and rate
    and taught it nothing."""
    if adapted.out_of_fold:
        return adapted.out_of_fold
    asked = PromptRequest(adapted.prompt, adapted.episode.task, adapted.episode.shots.dev)
    [given] = answer_requests(backbone, [asked], generate=False)
    return held_out_answers(given.eval_set, given.nll)


def judged(adapted: Adapted, answers: Sequence[HeldOut]) -> Candidate:
    """A prompt by its answers to examples that it has not learned from."""
    task, each = adapted.episode.task, tuple(answer.right_nll for answer in answers)
    predictions, value = held_out_predictions(task, answers), held_out_score(task, answers)
    return Candidate(adapted, value, sum(each) / len(each), predictions, each)


@dataclass(frozen=True)
class Gap:
    """By how much the chosen candidate is ahead of another in what decided, with a 95% interval over examples.

    Ahead is positive whatever the metric: with NLL, by how much that of the chosen one is lower.
    """

    of: str
    mean: float
    low: float
    high: float

    @property
    def says(self) -> str:
        """The gap in words."""
        doubt = "; so few examples cannot tell this from chance" if self.low <= 0 <= self.high else ""
        word, mean, low, high = "Ahead of", self.mean, self.low, self.high
        if mean < 0:  # a blend that scores less and is surer of the right answers
            word, mean, low, high = "Behind", -mean, -high, -low
        return f"{word} {self.of} by {mean:.3g} (95% interval {low:.3g} to {high:.3g}){doubt}"

    def to_mapping(self) -> dict[str, object]:
        """What a header keeps."""
        return {"to": self.of, "mean": self.mean, "low": self.low, "high": self.high}


def paired_gap(chosen: Candidate, other: Candidate, by_nll: bool | None = None) -> Gap:
    """How far one candidate is ahead of another in score, or in NLL (nats): by default where their scores are equal."""
    by_nll = chosen.rank[0] == other.rank[0] if by_nll is None else by_nll

    def nll_lead(places: Sequence[int]) -> float:
        return sum(other.each_nll[p] - chosen.each_nll[p] for p in places) / len(places)

    task, examples = chosen.adapted.episode.task, chosen.examples
    lead = nll_lead if by_nll else score_lead(task, examples, chosen.predictions, other.predictions)
    return Gap(other.method, *with_interval(lead, len(chosen.each_nll)))


def score_lead(task: Task, examples: Sequence[Example], own: Sequence[Prediction], other: Sequence[Prediction]) -> Lead:
    """By how much `own` predictions are ahead of others in the task's first metric."""
    mine, others = (resampled_score(task, examples, of) for of in (own, other))
    return lambda places: merit(task.metrics[0], mine(places)) - merit(task.metrics[0], others(places))


def with_interval(lead: Lead, size: int) -> tuple[float, float, float]:
    """A lead on all of `size` examples, and the ends of its 95% interval: the percentile bootstrap over examples, both
    sides judged on the same ones."""
    resamples = np.random.default_rng(0).integers(0, size, (RESAMPLES, size)).tolist()
    low, high = np.quantile([lead(places) for places in resamples], (0.025, 0.975)).tolist()
    return lead(range(size)), low, high


@dataclass(frozen=True)
class Mix:
    """What a blend is made of: members by their place among the candidates, weights that sum to one, temperatures."""

    members: tuple[int, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]

    def over_runs(self, counts: Sequence[int]) -> "Mix":
        """The same where candidate m answers by `counts[m]` runs, which share its weight: members are then places among
        the runs of all candidates."""
        starts = [0, *accumulate(counts)]
        parts = [
            (starts[m] + run, weight / counts[m], temperature)
            for m, weight, temperature in zip(self.members, self.weights, self.temperatures, strict=True)
            for run in range(counts[m])
        ]
        return Mix(*zip(*parts, strict=True))

    def answer(self, given: Sequence[HeldOut]) -> HeldOut:
        """One example as the blend answers it, from what each candidate answered."""
        scaled = [
            [nll / t for nll in given[m].target_nll] for m, t in zip(self.members, self.temperatures, strict=True)
        ]
        return replace(given[0], target_nll=tuple(mean_probability(scaled, self.weights)))


def mix(answers: Sequence[Sequence[HeldOut]], trained: Sequence[bool] = ()) -> Mix:
    """The weights and temperatures that these answers prefer, `answers[m][i]` to example i by candidate m."""
    temperatures, logs = [], []
    for own in answers:
        most = max(len(answer.target_nll) for answer in own)  # choices may differ by example
        padded = [(*answer.target_nll, *[inf] * (most - len(answer.target_nll))) for answer in own]
        table = -torch.tensor(padded, dtype=torch.float64)  # [n, K]
        right = torch.tensor([[answer.example.label or 0] for answer in own])  # [n, 1]
        scaled = table / torch.tensor(TEMPERATURES, dtype=torch.float64)[:, None, None]  # [T, n, K]
        each = scaled.log_softmax(-1).gather(-1, right.expand(len(TEMPERATURES), -1, -1))[..., 0]  # [T, n]
        log_prior = -torch.tensor(OCTAVES, dtype=torch.float64).square() / 2  # [T]
        best = int((each.sum(1) + log_prior).argmax())
        temperatures.append(TEMPERATURES[best])
        logs.append(each[best])
    weights = mixing_weights(torch.stack(logs), prior_weights(trained or [False] * len(answers)))
    members = [m for m in range(len(weights)) if weights[m] >= LEAST_WEIGHT]
    kept = weights[members] / weights[members].sum()
    return Mix(tuple(members), tuple(kept.tolist()), tuple(temperatures[m] for m in members))


def prior_weights(trained: Sequence[bool]) -> Float[Tensor, " M"]:
    """What a blend is pulled to: a share for each candidate that trained, and one for all the others.

    >>> prior_weights([False, False, True]).tolist()
    [0.25, 0.25, 0.5]
    """
    own = torch.tensor(trained)  # [M]
    shares = torch.where(own, 1.0, 1 / max(1, int((~own).sum()))).double()
    return shares / shares.sum()


def mixing_weights(log_right: Float[Tensor, "M n"], prior: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Weights on the simplex that maximise, by EM,

    sum over examples of log(sum over m of w_m p_m(right answer)) + PULL * M * sum over m of prior_m log w_m
    """
    weights, pull = prior, PULL * len(prior) * prior
    for _ in range(EM_STEPS):
        counts = torch.softmax(log_right + weights.log()[:, None], dim=0).sum(1) + pull
        weights = counts / counts.sum()
    return weights


def cross_validated(answers: Sequence[Sequence[HeldOut]], trained: Sequence[bool] = ()) -> list[HeldOut]:
    """Every example as the blend answers it by weights that the other folds gave."""
    count = len(answers[0])
    order = np.random.default_rng(0).permutation(count).tolist()
    mixed = list(answers[0])
    for fold in range(min(FOLDS, count)):
        own = order[fold::FOLDS]
        others = [i for i in order if i not in own] or own
        fitted = mix([[each[i] for i in others] for each in answers], trained)
        for i in own:
            mixed[i] = fitted.answer([each[i] for each in answers])
    return mixed


@dataclass(frozen=True)
class Choice:
    """What held-out answers choose: the single candidate at place `best`, or all of them as `blend` mixes them.

    `standings` say how good each candidate is, and after them the blend where there is one: the merit of its score, of
    free text minus its mean NLL in nats; higher is better. `mixed` are the examples as the blend answers them by
    weights that have not seen them, none where there is none.
    """

    best: int
    blend: Mix
    takes_blend: bool
    mixed: tuple[HeldOut, ...]
    standings: tuple[float, ...]


def held_out_choice(
    task: Task, answers: Sequence[Sequence[HeldOut]], trained: Sequence[bool] = (), may_blend: bool = True
) -> Choice:
    """Which candidates answer a task, from `answers[m][i]` of candidate m, in order of cost, to held-out example i.

    `trained[m]` says whether candidate m moved parameters by descent; by default none did.
    Of single ones the best score, then the cheapest; the blend unless that one is surely ahead of it in score. Free
    text, which has no choices to average over, goes to the lowest NLL.
    """
    may_blend = may_blend and task.is_choice and len(answers) > 1
    blend = mix(answers, trained) if may_blend else Mix((), (), ())
    mixed = tuple(cross_validated(answers, trained)) if len(blend.members) > 1 else ()
    standings = []
    for own in (*answers, mixed) if mixed else answers:
        value, each = held_out_score(task, own), [answer.right_nll for answer in own]
        standings.append(-sum(each) / len(each) if value is None else merit(task.metrics[0], value))
    best = max(range(len(answers)), key=lambda m: (standings[m], -m))
    takes_blend = False
    if mixed:
        sides = (held_out_predictions(task, own) for own in (answers[best], mixed))
        lead = score_lead(task, [answer.example for answer in mixed], *sides)
        takes_blend = with_interval(lead, len(mixed))[1] <= 0
    return Choice(best, blend, takes_blend, mixed, tuple(standings))


def choose_candidate(
    name: str,
    candidates: Sequence[Adapted],
    may_blend: bool = True,
    not_run: Mapping[str, float] | None = None,
    cannot: Mapping[str, str] | None = None,
) -> Adapted:
    """The best candidate of one episode, or their blend, as the prompt of method `name`.

    Candidates stand in order of cost; `held_out_choice` decides. The header has `scores.auto`: what was chosen, and a
    leaderboard of held-out score (None for free text) with its standard error, NLL in nats, seconds and weight in the
    blend. It also says how many seconds candidates that were `not_run` would have taken, why others `cannot` answer,
    and the gap (`paired_gap`) between what was chosen and the best of the others.
    """
    task = candidates[0].episode.task
    given = [{answer.example.id: answer for answer in a.out_of_fold} for a in candidates]
    common = [example for example in given[0] if all(example in own for own in given)]
    answers = [tuple(own[example] for example in common) for own in given]
    choice = held_out_choice(task, answers, [a.learning_rate is not None for a in candidates], may_blend)
    weights = dict(zip(choice.blend.members, choice.blend.weights, strict=True))
    board = [judged(replace(a, out_of_fold=own), own) for a, own in zip(candidates, answers, strict=True)]
    base, cost = candidates[choice.best], sum((a.cost for a in candidates[1:]), candidates[0].cost)
    header = base.prompt.header
    if choice.mixed:
        own_header = replace(header, method=name)
        together = replace(base, prompt=replace(base.prompt, header=own_header), out_of_fold=choice.mixed, cost=cost)
        board.append(judged(together, choice.mixed))
    place = len(candidates) if choice.takes_blend else choice.best
    chosen, others = board[place], [m for m in range(len(board)) if m != place]
    errors = [jackknife_error(task, c.adapted.out_of_fold) for c in board]
    about: dict[str, object] = {
        "chosen": chosen.method,
        "leaderboard": [
            {
                "method": c.method,
                "score": c.score,
                "error": error,
                "nll": c.nll,
                "seconds": c.adapted.cost.seconds,
                "weight": weights.get(m, 0.0) if m < len(candidates) else 1.0,
            }
            for m, (c, error) in enumerate(zip(board, errors, strict=True))
        ],
        "not_run": dict(not_run or {}),
        "cannot": dict(cannot or {}),
    }
    if others:
        rival = board[max(others, key=choice.standings.__getitem__)]
        gap = paired_gap(chosen, rival, by_nll=chosen.score is None)
        about |= {"gap": gap.to_mapping(), "says": f"{chosen.method} answers. {gap.says}"}
    dev = {**header.scores["dev"], "dev_score": chosen.score, "dev_error": errors[place]}  # type: ignore[dict-item]
    header = replace(header, method=name, scores={**header.scores, "dev": dev, "auto": about})
    prompt, trainable = replace(base.prompt, header=header), base.trainable
    if choice.takes_blend:
        runs = [runs_in(a.prompt) for a in candidates]
        of_runs, prompts = choice.blend.over_runs([*map(len, runs)]), [prompt for own in runs for prompt in own]
        prompt = blended(header, [prompts[m] for m in of_runs.members], of_runs.weights, of_runs.temperatures)
        trainable = sum(candidates[m].trainable for m in choice.blend.members)
    return replace(
        chosen.adapted,
        prompt=prompt,
        dev_score=chosen.score,
        dev_error=errors[place],
        cost=cost,
        trainable=trainable,
    )

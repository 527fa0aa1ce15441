"""The negative-transfer guard: a prior is kept only where the dev shots speak for it.

Its prompt stands against scratch (prompt tuning on the same budget) and against no prompt, on the episode's dev shots
and nothing else: the better score wins, at equal scores the lower NLL, and what is equal in both stays with the prior.
Dev shots are few, so the gap comes with an interval; and they chose steps and rates of the two trained candidates,
which flatters those beside no prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from promptprior.adapt import adapt
from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.held_out import held_out_predictions
from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.evaluate import eval_set_losses, predictions_of, prompt_eval_set, prompt_objective, right_answer_nll
from promptprior.fit import RunControl
from promptprior.heads.fitted import without_head
from promptprior.methods import Episode, Recipe, make_method
from promptprior.tasks.metrics import Prediction, merit, score
from promptprior.tasks.task import Example
from promptprior.watch import WatchStage

RIVALS = ("zero_shot", "prompt_tuning")  # of two that are equal the first, which costs nothing, is taken
RESAMPLES = 500


@dataclass(frozen=True)
class Candidate:
    """A prompt, and on the dev shots the task's score (None for free text) and each example's NLL in nats.

    With folds these are of all examples that were answered out of fold.
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


@dataclass(frozen=True)
class Gap:
    """By how much the chosen candidate is ahead of another in what decided, with a 95% interval over dev examples.

    Ahead is positive whatever the metric: with NLL, by how much the chosen one's is lower.
    """

    of: str
    mean: float
    low: float
    high: float

    @property
    def could_be_chance(self) -> bool:
        """Whether the interval holds 0."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True)
class Guarded:
    """An episode's verdict. `adapted` is the chosen prompt, whose header says so too; candidate 0 is the prior's.

    `gap` is between what was chosen and the best alternative: the prior where it fell back, else the best rival.
    """

    adapted: Adapted
    candidates: tuple[Candidate, ...]
    gap: Gap

    @property
    def kept(self) -> bool:
        """Whether the prior's prompt was chosen."""
        return self.adapted.prompt.header.method == self.candidates[0].method

    @property
    def says(self) -> str:
        """The verdict in a sentence."""
        return _sentence(self.adapted.prompt.header.method, self.candidates, self.gap)


def guarded(
    method: Recipe,
    episodes: Sequence[Episode],
    backbone: Backbone,
    priors: Sequence[Prior] | Prior | None,
    settings: Settings | None = None,
    control: RunControl | None = None,
) -> list[Guarded]:
    """Adapt from a prior, from scratch and not at all, and keep for each episode what its dev shots prefer.

    Takes what `adapt` takes and costs about twice as much. Raises SpecError for a method that has no prior.
    """
    if not method.needs_sources:
        raise SpecError(f"method {method.name!r} starts from no prior: there is nothing to guard (--guard, --method)")
    control, per_method = control or RunControl(), []
    for rival in (method, *map(make_method, RIVALS)):
        own = replace(control.inside(rival.name), watch=_prefixed(control.watch, rival.name))
        per_method.append(adapt(rival, episodes, backbone, priors, settings, own))
    return [choose([judge_on_dev(backbone, a) for a in rivals]) for rivals in zip(*per_method, strict=True)]


def _prefixed(watch: WatchStage | None, method: str) -> WatchStage | None:
    """The watcher of stages, with the method's name before each stage's."""
    return None if watch is None else lambda stage: watch(f"{method} {stage}")


@torch.no_grad()
def judge_on_dev(backbone: Backbone, adapted: Adapted) -> Candidate:
    """Score and NLL of a prompt on its episode's dev shots, example by example.

    With folds the prompt has learned from them too: then the answers count that were given before that.
    """
    task, dev = adapted.episode.task, adapted.episode.shots.dev
    if held := adapted.out_of_fold:
        each, predictions = [answer.right_nll for answer in held], held_out_predictions(task, held)
        value = score(task, [a.example for a in held], predictions)[task.metrics[0]] if predictions else None
        return Candidate(adapted, value, sum(each) / len(each), predictions, tuple(each))
    objective = prompt_objective(adapted.prompt, backbone)
    eval_set = prompt_eval_set(objective, adapted.prompt, task, dev)
    params = without_head(adapted.prompt.params)
    [losses] = eval_set_losses(objective, params, [eval_set])
    each = [
        right_answer_nll(replace(eval_set, examples=[example], tokens=[tokens]), [values])
        for example, tokens, values in zip(dev, eval_set.tokens, losses, strict=True)
    ]
    predictions = tuple(predictions_of(objective, params, [eval_set], [losses], generate=False)[0])
    value = score(task, dev, predictions)[task.metrics[0]] if predictions else None
    return Candidate(adapted, value, sum(each) / len(each), predictions, tuple(each))


def choose(candidates: Sequence[Candidate]) -> Guarded:
    """The best candidate on dev, the first of several that are equal; its header says why."""
    prior, *rivals = candidates
    chosen = max(candidates, key=lambda c: c.rank)
    gap = paired_gap(chosen, max(rivals, key=lambda c: c.rank) if chosen is prior else prior)
    header = chosen.adapted.prompt.header
    verdict = {
        "chosen": chosen.method,
        "prior": prior.method,
        "fell_back": chosen is not prior,
        "says": _sentence(chosen.method, candidates, gap),
        "gap": {"to": gap.of, "mean": gap.mean, "low": gap.low, "high": gap.high},
        "dev": {c.method: {"score": c.score, "nll": c.nll} for c in candidates},
    }
    prompt = replace(chosen.adapted.prompt, header=replace(header, scores={**header.scores, "guard": verdict}))
    return Guarded(replace(chosen.adapted, prompt=prompt), tuple(candidates), gap)


def paired_gap(chosen: Candidate, other: Candidate) -> Gap:
    """How far one candidate is ahead of another in score, or in NLL (nats) where their scores are equal.

    The interval is the percentile bootstrap over dev examples, both candidates judged on the same ones.
    """
    task, dev, size = chosen.adapted.episode.task, chosen.examples, len(chosen.each_nll)

    def ahead(places: Sequence[int]) -> float:
        if chosen.rank[0] == other.rank[0]:
            return sum(other.each_nll[p] - chosen.each_nll[p] for p in places) / len(places)
        examples = [dev[p] for p in places]
        scores = (score(task, examples, [c.predictions[p] for p in places]) for c in (chosen, other))
        own, others = (merit(task.metrics[0], values[task.metrics[0]]) for values in scores)
        return own - others

    resamples = np.random.default_rng(0).integers(0, size, (RESAMPLES, size)).tolist()
    low, high = np.quantile([ahead(places) for places in resamples], (0.025, 0.975)).tolist()
    return Gap(other.method, ahead(range(size)), low, high)


def _sentence(chosen: str, candidates: Sequence[Candidate], gap: Gap) -> str:
    prior = candidates[0]
    verb = "kept the prior" if chosen == prior.method else f"fell back to {chosen}, away from the prior"
    standing = ", ".join(
        f"{c.method} {'' if c.score is None else f'{c.score:.3f}, '}NLL {c.nll:.3f}" for c in candidates
    )
    doubt = "; so few examples cannot tell this from chance" if gap.could_be_chance else ""
    return (
        f"guard: {verb} ({prior.method}). On {len(prior.each_nll)} dev examples: {standing}. Ahead of {gap.of} by "
        f"{gap.mean:.3g} (95% interval {gap.low:.3g} to {gap.high:.3g}){doubt}"
    )

"""The negative-transfer guard: a prior is kept only where the dev shots speak for it.

Its prompt stands against scratch (prompt tuning on the same budget) and against no prompt, on the episode's dev shots
and nothing else: the better score wins, at equal scores the lower NLL, and what is equal in both stays with the prior.
Dev shots are few, so the gap comes with an interval; and they chose steps and rates of the two trained candidates,
which flatters those beside no prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from promptprior.adapt import Adapted, adapt
from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.evaluate import eval_set_losses, make_eval_set, prompt_objective, ranked, right_answer_nll
from promptprior.methods import Episode, Method, make_method
from promptprior.tasks.metrics import Prediction, score
from promptprior.watch import WatchStage

RIVALS = ("zero_shot", "prompt_tuning")  # of two that are equal the first, which costs nothing, is taken
RESAMPLES = 500


@dataclass(frozen=True)
class Candidate:
    """A prompt and what dev says of it: the task's score (None for free text) and each example's NLL in nats."""

    adapted: Adapted
    score: float | None
    nll: float
    predictions: tuple[Prediction, ...]
    each_nll: tuple[float, ...]

    @property
    def method(self) -> str:
        """Whose prompt it is."""
        return self.adapted.prompt.header.method

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better. Six digits, as training logs them: the same prompt must not beat itself by rounding."""
        return round(self.score or 0.0, 6), -float(f"{self.nll:.6g}")


@dataclass(frozen=True)
class Gap:
    """By how much the chosen candidate is ahead of another in what decided, with a 95% interval over dev examples."""

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

    `gap` is between what was chosen and the best of what might have been: the prior where it fell back, else the best
    rival.
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
        return sentence(self.adapted.prompt.header.method, self.candidates, self.gap)


def guarded(
    method: Method,
    episodes: Sequence[Episode],
    backbone: Backbone,
    priors: Sequence[Prior] | Prior | None,
    settings: Settings | None = None,
    folder: Path | str | None = None,
    watch: WatchStage | None = None,
    checkpoint_seconds: float = 30.0,
) -> list[Guarded]:
    """Adapt from a prior, from scratch and not at all, and keep of each episode what its dev shots speak for.

    Takes what `adapt` takes and costs about twice as much. Raises SpecError for a method that has no prior.
    """
    if not method.needs_sources:
        raise SpecError(f"method {method.name!r} starts from no prior: there is nothing to guard (--guard, --method)")
    home = Path(folder) if folder is not None else None
    done = []
    for rival in (method, *map(make_method, RIVALS)):
        place, heard = home / rival.name if home else None, named(watch, rival.name)
        done.append(adapt(rival, episodes, backbone, priors, settings, place, heard, checkpoint_seconds))
    return [verdict([on_dev(backbone, a) for a in each]) for each in zip(*done, strict=True)]


def named(watch: WatchStage | None, name: str) -> WatchStage | None:
    """Who watches, told whose stage it is."""
    return None if watch is None else lambda stage: watch(f"{name} {stage}")


@torch.no_grad()
def on_dev(backbone: Backbone, adapted: Adapted) -> Candidate:
    """What the dev shots say of a prompt, example by example."""
    task, dev = adapted.episode.task, adapted.episode.shots.dev
    objective = prompt_objective(adapted.prompt, backbone)
    eval_set = make_eval_set(objective, task, dev)
    [losses] = eval_set_losses(objective, adapted.prompt.params, [eval_set])
    each = [
        right_answer_nll(replace(eval_set, examples=[example], tokens=[tokens]), [values])
        for example, tokens, values in zip(dev, eval_set.tokens, losses, strict=True)
    ]
    predictions = tuple(ranked(eval_set, losses)) if task.is_choice else ()
    value = score(task, dev, predictions)[task.metrics[0]] if predictions else None
    return Candidate(adapted, value, sum(each) / len(each), predictions, tuple(each))


def verdict(candidates: Sequence[Candidate]) -> Guarded:
    """The best candidate on dev; the first of several that are equal."""
    prior, *rivals = candidates
    chosen = max(candidates, key=lambda c: c.rank)
    other = max(rivals, key=lambda c: c.rank) if chosen is prior else prior
    gap = paired_gap(chosen, other)
    header = chosen.adapted.prompt.header
    told = {
        "chosen": chosen.method,
        "prior": prior.method,
        "fell_back": chosen is not prior,
        "says": sentence(chosen.method, candidates, gap),
        "gap": {"to": gap.of, "mean": gap.mean, "low": gap.low, "high": gap.high},
        "dev": {c.method: {"score": c.score, "nll": c.nll} for c in candidates},
    }
    prompt = replace(chosen.adapted.prompt, header=replace(header, scores={**header.scores, "guard": told}))
    return Guarded(replace(chosen.adapted, prompt=prompt), tuple(candidates), gap)


def paired_gap(chosen: Candidate, other: Candidate) -> Gap:
    """How far one candidate is ahead of another in score, or in NLL where their scores are equal.

    The interval is the percentile bootstrap over dev examples, both candidates judged on the same ones.
    """
    by_score = chosen.rank[0] != other.rank[0]
    ahead = score_gap if by_score else nll_gap
    size = len(chosen.each_nll)
    draws = np.random.default_rng(0).integers(0, size, (RESAMPLES, size)).tolist()
    low, high = np.quantile([ahead(chosen, other, places) for places in draws], (0.025, 0.975)).tolist()
    return Gap(other.method, ahead(chosen, other, range(size)), low, high)


def score_gap(chosen: Candidate, other: Candidate, places: Sequence[int]) -> float:
    """The difference of scores on some dev examples."""
    task, dev = chosen.adapted.episode.task, chosen.adapted.episode.shots.dev
    examples = [dev[p] for p in places]
    mine, theirs = (score(task, examples, [c.predictions[p] for p in places]) for c in (chosen, other))
    return mine[task.metrics[0]] - theirs[task.metrics[0]]


def nll_gap(chosen: Candidate, other: Candidate, places: Sequence[int]) -> float:
    """By how many nats the mean NLL on some dev examples is lower."""
    return sum(other.each_nll[p] - chosen.each_nll[p] for p in places) / len(places)


def sentence(chosen: str, candidates: Sequence[Candidate], gap: Gap) -> str:
    """The verdict for people."""
    prior = candidates[0]
    size = len(prior.each_nll)
    verb = "kept the prior" if chosen == prior.method else f"fell back to {chosen}, away from the prior"
    standing = ", ".join(f"{c.method} {standing_text(c)}" for c in candidates)
    doubt = "; so few examples cannot tell this from chance" if gap.could_be_chance else ""
    return (
        f"guard: {verb} ({prior.method}). On {size} dev examples: {standing}. Ahead of {gap.of} by {gap.mean:.3g} "
        f"(95% interval {gap.low:.3g} to {gap.high:.3g}){doubt}"
    )


def standing_text(candidate: Candidate) -> str:
    """Score and NLL, or NLL alone."""
    scored = "" if candidate.score is None else f"{candidate.score:.3f}, "
    return f"{scored}NLL {candidate.nll:.3f}"

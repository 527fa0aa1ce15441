"""A candidate that trains learns from one half of the shots and then from the other, each time judged by the rest.

The first run is the one that the method makes alone: the train shots teach it, the dev shots take its step. The second
learns from the dev shots, and the train shots take its step. Each answers the half that has not taught it, which its
step has seen, so all 2k examples judge the candidate. The two answer together, by their mean probability: they err
apart, and the mean errs less than either (docs/log.md has the numbers).
"""

from collections.abc import Sequence
from dataclasses import replace

from promptprior.adaptation.adapted import Adapted
from promptprior.artifacts.artifact import Prompt
from promptprior.artifacts.blending import BLEND, blend_members, blended
from promptprior.cost import Cost
from promptprior.methods import Episode
from promptprior.tasks.sampling.draws import Shots, class_of


def turned(episode: Episode) -> Episode | None:
    """The episode whose dev shots teach and whose train shots judge; None where that makes no second run.

    Free text has no probabilities to average. A class without a dev shot could not be learned, and where one half has
    more than twice the examples of the other, the run that learned from the few would be most of what is judged.
    """
    taught, judged = episode.shots.train, episode.shots.dev
    classes = [{class_of(episode.task, example) for example in half} for half in (taught, judged)]
    few, many = sorted((len(taught), len(judged)))
    if not episode.task.is_choice or not classes[0] <= classes[1] or many > 2 * few:
        return None
    return replace(episode, shots=Shots(judged, taught))


def answering_together(runs: Sequence[Adapted]) -> Adapted:
    """The runs of one episode, each with its answers to what it has not learned from, as one that has them all.

    Its dev score is still that of the first: what chooses takes the score of all answers (choose.py).
    """
    if len(runs) == 1:
        return runs[0]
    first, header = runs[0], runs[0].prompt.header
    dev = {**header.scores["dev"], "runs": len(runs)}  # type: ignore[dict-item]
    header = replace(header, scores={**header.scores, "dev": dev})
    equal, as_it_is = [1 / len(runs)] * len(runs), [1.0] * len(runs)
    return replace(
        first,
        prompt=blended(header, [run.prompt for run in runs], equal, as_it_is),
        out_of_fold=tuple(answer for run in runs for answer in run.out_of_fold),
        cost=sum((run.cost for run in runs), Cost()),
        trainable=sum(run.trainable for run in runs),
    )


def runs_in(prompt: Prompt) -> list[Prompt]:
    """The prompts that answer together in one; itself where it answers alone."""
    return blend_members(prompt) if prompt.header.parameterisation == BLEND else [prompt]

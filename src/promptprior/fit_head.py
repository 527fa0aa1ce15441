"""Heads of adapted prompts: each is fitted on its episode's shots, behind the prompt that adaptation chose."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from promptprior.evaluate import EvalResult, EvalSet, choice_result, make_eval_set, mean_probability, readouts
from promptprior.heads.fitted import FittedHead
from promptprior.heads.head import Head, Readout
from promptprior.methods import Episode
from promptprior.notation import Params
from promptprior.objectives.weight_objective import Answering
from promptprior.tasks.sampling.draws import class_of
from promptprior.tasks.task import Example, Task


def why_no_head(task: Task) -> str | None:
    """Why no head can answer a task, in words; None where one can."""
    if not task.is_choice:
        return "its answers are free text, which only the model's own words can give"
    if any(class_of(task, example) == "all" for example in task.split("train")[:1]):
        return "its choices differ by example, so there are no classes to tell apart"
    return None


@torch.no_grad()
def fit_heads(
    head: Head, objective: Answering, params: Params, episodes: Sequence[Episode], size: int
) -> list[tuple[tuple[FittedHead, ...], EvalResult | None]]:
    """For each episode the heads of its `size` copies, fitted on all its shots; and what dev says of heads that were
    fitted on its training shots alone (None without dev shots). Copies of episode e start at e * size."""
    members: list[EvalSet] = []
    extra: list[EvalSet] = []
    for e, episode in enumerate(episodes):
        shots = (*episode.shots.train, *episode.shots.dev)
        texts = head.extra_texts([example.text for example in shots])
        as_example = replace(shots[0], label=0, target=shots[0].choices[0])
        for c in range(e * size, (e + 1) * size):
            members.append(_headed(objective, head, episode.task, shots, c))
            if texts:
                free = [replace(as_example, id=f"extra-{i}", text=text) for i, text in enumerate(texts)]
                extra.append(_headed(objective, head, episode.task, free, c))
    sites = head.sites(objective.backbone.blocks)
    read = readouts(objective, params, [*members, *extra], [sites] * (len(members) + len(extra)))
    extra_read = read[len(members) :] or [None] * len(members)
    results = []
    for e, episode in enumerate(episodes):
        copies, train = range(e * size, (e + 1) * size), len(episode.shots.train)
        labels = torch.tensor([example.label for example in members[e * size].examples])
        answers = []  # of the copies, on dev, by heads that the training shots alone have taught
        for c in copies if episode.shots.dev else ():
            params_of = head.fit(_rows(read[c], slice(train)), labels[:train], extra_read[c])
            answers.append(
                head.choice_nll(params_of, _rows(read[c], slice(train, None), head.used(params_of))).tolist()
            )
        on_dev = None
        if answers:
            dev_set = make_eval_set(objective, episode.task, episode.shots.dev)
            on_dev = choice_result(dev_set, [mean_probability(nll) for nll in zip(*answers, strict=True)])
        heads = tuple(FittedHead(head, head.fit(read[c], labels, extra_read[c])) for c in copies)
        results.append((heads, on_dev))
    return results


def _headed(objective: Answering, head: Head, task: Task, examples: Sequence[Example], copy: int) -> EvalSet:
    return replace(make_eval_set(objective, task, examples, copy), heads=(FittedHead(head, {}),))


def _rows(readout: Readout, rows: slice, sites: Sequence[int] | None = None) -> Readout:
    states = readout.states if readout.states is None else readout.states[rows]
    return Readout(readout.nll[rows], states if states is None or sites is None else states[:, list(sites)])

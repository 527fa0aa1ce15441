"""Heads of adapted prompts: each is fitted on its episode's shots, behind the prompt that adaptation chose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.evaluate import EvalSet, make_eval_set, readouts
from promptprior.heads.fitted import FittedHead
from promptprior.heads.head import Head, Readout
from promptprior.held_out import HeldOut
from promptprior.methods import Episode
from promptprior.notation import Params
from promptprior.objectives.weight_objective import Answering
from promptprior.tasks.sampling.draws import class_of
from promptprior.tasks.task import Task


def why_no_head(task: Task) -> str | None:
    """Why no head can answer a task, in words; None where one can."""
    if not task.is_choice:
        return "its answers are free text, which only the model's own words can give"
    if any(class_of(task, example) == "all" for example in task.split("train")[:1]):
        return "its choices differ by example, so there are no classes to tell apart"
    return None


@dataclass(frozen=True)
class HeadFit:
    """The head of an episode's prompt, fitted on all its shots; and its dev shots as answered by one that the training
    shots alone have taught."""

    head: FittedHead
    on_dev: tuple[HeldOut, ...]


@torch.no_grad()
def fit_heads(head: Head, objective: Answering, params: Params, episodes: Sequence[Episode]) -> list[HeadFit]:
    """A head for each episode, behind the prompt of its own copy of the params: copy e for episode e."""
    members: list[EvalSet] = []
    extra: list[EvalSet] = []
    for copy, episode in enumerate(episodes):
        shots = (*episode.shots.train, *episode.shots.dev)
        texts = head.extra_texts([example.text for example in shots])
        free = [replace(shots[0], id=f"extra-{i}", text=text) for i, text in enumerate(texts)]
        for sets, examples in ((members, shots), (extra, free)):
            if examples:
                own = make_eval_set(objective, episode.task, examples, copy)
                sets.append(replace(own, heads=(FittedHead(head, {}),)))
    sites = head.sites(objective.backbone.layers)
    read = readouts(objective, params, [*members, *extra], [sites] * (len(members) + len(extra)))
    extra_read = read[len(members) :] or [None] * len(members)

    fits = []
    for episode, member, shots_read, own_extra in zip(episodes, members, read, extra_read, strict=False):
        train, on_dev = len(episode.shots.train), tuple[HeldOut, ...]()
        labels = torch.tensor([example.label for example in member.examples])
        if episode.shots.dev:
            taught = head.fit(_rows(shots_read, slice(train)), labels[:train], own_extra)
            nll = head.choice_nll(taught, _rows(shots_read, slice(train, None), head.used(taught))).tolist()
            lengths = [tuple(map(len, tokens.targets)) for tokens in member.tokens[train:]]
            on_dev = tuple(HeldOut(*of) for of in zip(episode.shots.dev, map(tuple, nll), lengths, strict=True))
        fits.append(HeadFit(FittedHead(head, head.fit(shots_read, labels, own_extra)), on_dev))
    return fits


def _rows(readout: Readout, rows: slice, sites: Sequence[int] | None = None) -> Readout:
    states = readout.states if readout.states is None else readout.states[rows]
    return Readout(readout.nll[rows], states if states is None or sites is None else states[:, list(sites)])

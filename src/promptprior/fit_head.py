"""Heads of adapted prompts: each is fitted on its episode's shots, behind the prompt that adaptation chose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.evaluate import EvalSet, make_eval_set, mean_probability, readouts
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
    """The heads of an episode's copies, fitted on all its shots; and its dev shots as answered together by heads that
    the training shots alone have taught."""

    heads: tuple[FittedHead, ...]
    on_dev: tuple[HeldOut, ...]


@torch.no_grad()
def fit_heads(
    head: Head, objective: Answering, params: Params, episodes: Sequence[Episode], size: int
) -> list[HeadFit]:
    """Heads for each episode, behind its `size` copies of the params: those of episode e start at e * size."""
    members: list[EvalSet] = []
    extra: list[EvalSet] = []
    for e, episode in enumerate(episodes):
        shots = (*episode.shots.train, *episode.shots.dev)
        texts = head.extra_texts([example.text for example in shots])
        free = [replace(shots[0], id=f"extra-{i}", text=text) for i, text in enumerate(texts)]
        for copy in range(e * size, (e + 1) * size):
            for sets, examples in ((members, shots), (extra, free)):
                if examples:
                    own = make_eval_set(objective, episode.task, examples, copy)
                    sets.append(replace(own, heads=(FittedHead(head, {}),)))
    sites = head.sites(objective.backbone.layers)
    read = readouts(objective, params, [*members, *extra], [sites] * (len(members) + len(extra)))
    extra_read = read[len(members) :] or [None] * len(members)

    fits = []
    for e, episode in enumerate(episodes):
        copies, train, dev = range(e * size, (e + 1) * size), len(episode.shots.train), episode.shots.dev
        labels = torch.tensor([example.label for example in members[e * size].examples])
        answers = []  # of each copy, on dev
        for c in copies if dev else ():
            taught = head.fit(_rows(read[c], slice(train)), labels[:train], extra_read[c])
            answers.append(head.choice_nll(taught, _rows(read[c], slice(train, None), head.used(taught))).tolist())
        together = [nll[0] if size == 1 else mean_probability(nll) for nll in zip(*answers, strict=True)]
        lengths = [tuple(map(len, tokens.targets)) for tokens in members[e * size].tokens[train:]]
        on_dev = tuple(HeldOut(x, tuple(nll), own) for x, nll, own in zip(dev, together, lengths, strict=True))
        heads = tuple(FittedHead(head, head.fit(read[c], labels, extra_read[c])) for c in copies)
        fits.append(HeadFit(heads, on_dev))
    return fits


def _rows(readout: Readout, rows: slice, sites: Sequence[int] | None = None) -> Readout:
    states = readout.states if readout.states is None else readout.states[rows]
    return Readout(readout.nll[rows], states if states is None or sites is None else states[:, list(sites)])

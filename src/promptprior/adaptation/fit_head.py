"""Heads of adapted prompts: each is fitted on its episode's shots, behind the prompt that adaptation chose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.adaptation.held_out import HeldOut, held_out_answers
from promptprior.evaluate import EvalSet, make_eval_set, readouts
from promptprior.heads.fitted import FittedHead
from promptprior.heads.head import Head, Readout
from promptprior.methods import Episode
from promptprior.notation import Params
from promptprior.objectives.weight_objective import Answering


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
        # Each once, since a refit's dev shots are its training shots; in an order that no draw changes
        by_id = {example.id: example for example in (*episode.shots.train, *episode.shots.dev)}
        shots = tuple(by_id[name] for name in sorted(by_id))
        texts = head.extra_texts([example.text for example in shots])
        free = [replace(shots[0], id=f"extra-{i}", text=text) for i, text in enumerate(texts)]
        for sets, examples in ((members, shots), (extra, free)):
            if examples:
                own = make_eval_set(objective, episode.task, examples, copy)
                sets.append(replace(own, heads=(FittedHead(head, {}),)))
    sites = head.sites(objective.backbone.layers)
    read = readouts(objective, params, [*members, *extra], [sites] * (len(members) + len(extra)))
    extra_read: Sequence[Readout | None] = read[len(members) :] or [None] * len(members)

    fits = []
    for episode, member, shots_read, own_extra in zip(episodes, members, read, extra_read, strict=False):
        labels = torch.tensor([example.label for example in member.examples])
        place, on_dev = {example.id: i for i, example in enumerate(member.examples)}, tuple[HeldOut, ...]()
        if episode.shots.dev:
            train, dev = ([place[example.id] for example in own] for own in (episode.shots.train, episode.shots.dev))
            taught = head.fit(_rows(shots_read, sorted(train)), labels[sorted(train)], own_extra)
            asked = replace(member, examples=episode.shots.dev, tokens=[member.tokens[i] for i in dev])
            nll = head.choice_nll(taught, _rows(shots_read, dev, head.used(taught))).tolist()
            on_dev = held_out_answers(asked, nll)
        fits.append(HeadFit(FittedHead(head, head.fit(shots_read, labels, own_extra)), on_dev))
    return fits


def _rows(readout: Readout, rows: list[int], sites: Sequence[int] | None = None) -> Readout:
    states = readout.states if readout.states is None else readout.states[rows]
    return Readout(readout.nll[rows], states if states is None or sites is None else states[:, list(sites)])

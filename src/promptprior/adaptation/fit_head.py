"""Heads of adapted prompts: each is fitted on its episode's shots, behind the prompt that adaptation chose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from promptprior.adaptation.folds import fold_episodes
from promptprior.adaptation.held_out import HeldOut, held_out_answers
from promptprior.evaluate import EvalSet, make_eval_set, readouts
from promptprior.heads.fitted import FittedHead
from promptprior.heads.head import Head, Readout
from promptprior.methods import Episode
from promptprior.notation import Int, Params, Tensor
from promptprior.objectives.weight_objective import Answering
from promptprior.tasks.sampling.draws import Shots
from promptprior.tasks.task import Example

DEV_FOLDS = 4  # of the dev shots, where a prompt was trained


@dataclass(frozen=True)
class HeadFit:
    """What a head of an episode's prompt is fitted on: the readout of its shots and of the texts the head asked for.
    Fitted when it is asked for."""

    kind: Head
    episode: Episode
    shots: EvalSet
    read: Readout
    extra: Readout | None

    @cached_property
    def head(self) -> FittedHead:
        """The head that all shots have taught."""
        return FittedHead(self.kind, self.kind.fit(self.read, self.labels, self.extra))

    @cached_property
    def on_dev(self) -> tuple[HeldOut, ...]:
        """The dev shots as answered by a head that the training shots alone have taught; none without dev shots."""
        return self.answered(self.episode.shots.train, self.episode.shots.dev)

    @cached_property
    def on_dev_folds(self) -> tuple[HeldOut, ...]:
        """The dev shots, each quarter of them as answered by a head that all other shots have taught.

        Behind a prompt that the training shots taught, the states of these tell their labels too well. A head of them
        alone is sure of itself and wrong, as `head`, which the dev shots teach as well, is not (docs/log.md).
        """
        shots, answers = self.episode.shots, dict[str, HeldOut]()
        for part in fold_episodes(replace(self.episode, shots=Shots(shots.dev, ())), DEV_FOLDS):
            given = self.answered((*shots.train, *part.shots.train), part.shots.dev)
            answers |= {answer.example.id: answer for answer in given}
        return tuple(answers[example.id] for example in shots.dev)

    def answered(self, taught: Sequence[Example], asked: Sequence[Example]) -> tuple[HeldOut, ...]:
        """Some shots as answered by a head that others have taught."""
        if not asked:
            return ()
        place = {example.id: i for i, example in enumerate(self.shots.examples)}
        teaching, rows = sorted(place[example.id] for example in taught), [place[example.id] for example in asked]
        params = self.kind.fit(_rows(self.read, teaching), self.labels[teaching], self.extra)
        nll = self.kind.choice_nll(params, _rows(self.read, rows, self.kind.used(params)))
        of_asked = replace(self.shots, examples=tuple(asked), tokens=[self.shots.tokens[i] for i in rows])
        return held_out_answers(of_asked, nll.tolist())

    @property
    def labels(self) -> Int[Tensor, " X"]:
        """The label of each shot that was read."""
        return torch.tensor([example.label for example in self.shots.examples])


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
    return [HeadFit(head, *of_one) for of_one in zip(episodes, members, read, extra_read, strict=False)]


def _rows(readout: Readout, rows: list[int], sites: Sequence[int] | None = None) -> Readout:
    states = readout.states if readout.states is None else readout.states[rows]
    return Readout(readout.nll[rows], states if states is None or sites is None else states[:, list(sites)])

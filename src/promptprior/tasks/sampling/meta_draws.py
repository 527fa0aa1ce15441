"""What meta-learners are drawn: a few units a step, each with texts to adapt on and others to be judged on.

A *unit* is a task with one draw of its examples (Qin et al. 2023 make five units of every task). Support and query of a
unit share no example and no normalised text.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from promptprior.errors import DataError, SpecError
from promptprior.notation import Int, Tensor
from promptprior.tasks.sampling.batch import Batch, Tokens
from promptprior.tasks.sampling.draws import CROSSFIT_SEEDS, Pool, collate_drawn, generator, k_shot
from promptprior.tasks.task import Example, Task, normalised

Tokenise = Callable[[Task, Sequence[Example]], Sequence[Tokens]]


@dataclass(frozen=True)
class Unit:
    """One task with one draw: what inner steps learn from, and what the result is judged on."""

    support: Sequence[Tokens]
    query: Sequence[Tokens]
    task: int = 0


@dataclass(frozen=True)
class MetaBatch:
    """What one meta-update sees. Texts of unit u are of copy u; `owner` names the meta-learner each unit trains.

    `inner` holds one batch for every inner step; `query` is None for rules that judge nothing (Reptile).
    """

    inner: tuple[Batch, ...]
    query: Batch | None
    owner: Int[Tensor, " U"]


@dataclass(frozen=True)
class MetaDraws:
    """`units_per_step` units a step for each meta-learner (one for every seed), a pure function of (seed, step).

    A unit gives `support_size` texts to each of `inner_steps` inner batches, in shuffled epochs of its support, and
    `query_size` texts of its query (0: no query at all). A unit with fewer gives all it has. `same_support` gives
    every inner step the same texts.
    """

    units: Sequence[Unit]
    units_per_step: int
    inner_steps: int
    support_size: int
    query_size: int
    seeds: Sequence[int]
    same_support: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.units_per_step <= len(self.units):
            raise SpecError(
                f"{self.units_per_step} units in a meta-batch (units_per_step): expected 1 to {len(self.units)}, the "
                "units that the source tasks give (sources x units_per_task)"
            )
        if self.inner_steps < 1 or self.support_size < 1 or self.query_size < 0:
            raise SpecError(
                f"inner_steps {self.inner_steps}, support_size {self.support_size}, query_size {self.query_size}: "
                "expected at least 1, 1 and 0"
            )

    def batch(self, step: int) -> MetaBatch:
        """The meta-batch of one step."""
        inner: list[list[tuple[Pool, int]]] = [[] for _ in range(self.inner_steps)]
        query: list[tuple[Pool, int]] = []
        learners: list[int] = []  # the meta-learner of each unit drawn, and its seed: unit u is copy u
        seeds: list[int] = []
        for learner, seed in enumerate(self.seeds):
            units = torch.randperm(len(self.units), generator=generator(seed, "units", step))[: self.units_per_step]
            for u in units.tolist():
                unit, copy = self.units[u], len(seeds)
                support = Pool(unit.support, unit.task, copy)
                order = torch.randperm(len(unit.support), generator=generator(seed, "support", step, u)).tolist()
                size = min(self.support_size, len(order))
                for k, texts in enumerate(inner):  # the next texts of the order, from its front again when they run out
                    start = 0 if self.same_support else k * size
                    texts += [(support, order[(start + i) % len(order)]) for i in range(size)]
                order = torch.randperm(len(unit.query), generator=generator(seed, "query", step, u)).tolist()
                query += [(Pool(unit.query, unit.task, copy), place) for place in order[: self.query_size]]
                learners.append(learner)
                seeds.append(seed)
        seed_of_copy = dict(enumerate(seeds))
        return MetaBatch(
            inner=tuple(collate_drawn(texts, step, seed_of_copy) for texts in inner),
            query=collate_drawn(query, step, seed_of_copy) if self.query_size else None,
            owner=torch.tensor(learners),
        )


@dataclass(frozen=True)
class FewShotDraws:
    """For ONE copy: `units_per_step` tasks a step, of each `support` texts of every class and `query` others.

    A class is what texts have for an answer: their target's tokens. A task with more than `most_classes` gives as many
    of them, drawn anew for each unit; a class with fewer texts gives half of them to each side. Support stands before
    query in a unit. Rows of the support have weight 0: they are read, and only queries are scored. Those of a unit
    weigh 1 together, so that each task counts once. All are a pure function of (seed, step).
    """

    pools: Sequence[Pool]
    units_per_step: int
    support: int
    query: int
    seed: int
    most_classes: int = 8

    @cached_property
    def classes(self) -> list[list[list[int]]]:
        """Of every pool, the places of the texts of each class that has two at least."""
        found = []
        for pool in self.pools:
            places = defaultdict[tuple[tuple[int, ...], ...], list[int]](list)
            for place, item in enumerate(pool.items):
                places[item.targets].append(place)
            found.append([own for own in places.values() if len(own) > 1])
        return found

    def batch(self, step: int) -> Batch:
        """The units of one step."""
        g = generator(self.seed, "few shots", step)
        texts: list[tuple[Pool, int]] = []
        units: list[int] = []
        weights: list[float] = []
        for unit, task in enumerate(torch.randperm(len(self.pools), generator=g)[: self.units_per_step].tolist()):
            support: list[int] = []
            query: list[int] = []
            of_task = self.classes[task]
            for c in torch.randperm(len(of_task), generator=g)[: self.most_classes].tolist():
                order = [of_task[c][i] for i in torch.randperm(len(of_task[c]), generator=g).tolist()]
                middle = min(self.support, len(order) - min(self.query, len(order) // 2))
                support += order[:middle]
                query += order[middle : middle + self.query]
            texts += [(self.pools[task], place) for place in (*support, *query)]
            units += [unit] * len(support + query)
            weights += [0.0] * len(support) + [1 / len(query)] * len(query)
        batch = collate_drawn(texts, step, {pool.copy: self.seed for pool in self.pools})
        return replace(batch, unit_index=torch.tensor(units), weight=torch.tensor(weights))


def units_of(
    tasks: Sequence[Task], tokenise: Tokenise, per_task: int, shots: int | None, seed: int, pooled: bool = False
) -> list[Unit]:
    """`per_task` units of every task: k-shot draws with CrossFit's seeds, or random halves of the whole training split.

    `pooled` gives both halves to the support and none to the query (for rules without a query, so that all rules learn
    from the same examples). Raises DataError for a task that cannot give an example to each side.
    """
    if not 1 <= per_task <= len(CROSSFIT_SEEDS):
        raise SpecError(f"units_per_task {per_task}: expected 1 to {len(CROSSFIT_SEEDS)}")
    units = []
    for index, task in enumerate(tasks):
        for draw in CROSSFIT_SEEDS[:per_task]:
            if shots is not None:
                drawn = k_shot(task, shots, draw)
                support, query = list(drawn.train), list(drawn.dev)
            else:  # of examples with one normalised text, the first is kept
                distinct = list({normalised(e.text): e for e in reversed(task.split("train"))}.values())
                if len(distinct) < 2:
                    raise DataError(
                        f"task {task.name!r} has {len(distinct)} distinct training example(s); a meta-learner needs at "
                        "least 2 (one to adapt on, one to be judged on)"
                    )
                order = torch.randperm(len(distinct), generator=generator(seed, draw, task.name)).tolist()
                middle = len(distinct) // 2
                support, query = [distinct[i] for i in order[:middle]], [distinct[i] for i in order[middle:]]
            if pooled:
                support, query = [*support, *query], []
            units.append(Unit(tokenise(task, support), tokenise(task, query), index))
    return units

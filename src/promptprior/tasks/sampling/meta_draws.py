"""What meta-learners are drawn: a few units a step, each with batches to adapt on and others to be judged on.

A *unit* is a task with one draw of its examples (Qin et al. 2023 make five units of every task). Support and query of a
unit share no example and no normalised text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from promptprior.errors import DataError, SpecError
from promptprior.notation import Int, Tensor
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.sampling.draws import CROSSFIT_SEEDS, generator, k_shot
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
        drawn = [(owner, unit) for owner, seed in enumerate(self.seeds) for unit in self.chosen(seed, step)]
        supports = [self.support_order(self.seeds[owner], step, unit) for owner, unit in drawn]
        units = [self.units[unit] for _, unit in drawn]
        inner = tuple(
            joined(units, [self.part(order, k) for order in supports], lambda unit: unit.support)
            for k in range(self.inner_steps)
        )
        queries = [self.query_order(self.seeds[owner], step, unit) for owner, unit in drawn]
        query = joined(units, queries, lambda unit: unit.query) if self.query_size else None
        return MetaBatch(inner, query, torch.tensor([owner for owner, _ in drawn]))

    def chosen(self, seed: int, step: int) -> list[int]:
        """The units of one meta-learner's step, without repetition."""
        order = torch.randperm(len(self.units), generator=generator(seed, "units", step))
        return order[: self.units_per_step].tolist()

    def support_order(self, seed: int, step: int, unit: int) -> list[int]:
        """The support examples of a unit in the order in which this step's inner batches take them."""
        return torch.randperm(len(self.units[unit].support), generator=generator(seed, "support", step, unit)).tolist()

    def part(self, order: Sequence[int], k: int) -> list[int]:
        """The places of inner batch k: the next `support_size`, from the front again when they run out."""
        take = min(self.support_size, len(order))
        k = 0 if self.same_support else k
        return [order[(k * take + i) % len(order)] for i in range(take)]

    def query_order(self, seed: int, step: int, unit: int) -> list[int]:
        """The places of a unit's query texts in this step."""
        order = torch.randperm(len(self.units[unit].query), generator=generator(seed, "query", step, unit)).tolist()
        return order[: self.query_size]


def joined(units: Sequence[Unit], places: Sequence[Sequence[int]], side: Callable[[Unit], Sequence[Tokens]]) -> Batch:
    """The named texts of every unit as one batch; unit u is copy u."""
    return collate(
        [side(unit)[p] for unit, some in zip(units, places, strict=True) for p in some],
        [u for u, some in enumerate(places) for _ in some],
        [unit.task for unit, some in zip(units, places, strict=True) for _ in some],
    )


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
            support, query = (
                halves(task, generator(seed, draw, task.name)) if shots is None else shot(task, shots, draw)
            )
            if pooled:
                support, query = [*support, *query], ()
            units.append(Unit(tokenise(task, support), tokenise(task, query), index))
    return units


def shot(task: Task, k: int, seed: int) -> tuple[Sequence[Example], Sequence[Example]]:
    """The training and the dev side of a k-shot draw."""
    drawn = k_shot(task, k, seed)
    return drawn.train, drawn.dev


def halves(task: Task, g: torch.Generator) -> tuple[Sequence[Example], Sequence[Example]]:
    """The training split in two random halves; of examples with one normalised text, the first is kept."""
    distinct = list({normalised(e.text): e for e in reversed(task.split("train"))}.values())
    if len(distinct) < 2:
        raise DataError(
            f"task {task.name!r} has {len(distinct)} distinct training example(s); a meta-learner needs at least 2 "
            "(one to adapt on, one to be judged on)"
        )
    order = torch.randperm(len(distinct), generator=g).tolist()
    middle = len(distinct) // 2
    return [distinct[i] for i in order[:middle]], [distinct[i] for i in order[middle:]]

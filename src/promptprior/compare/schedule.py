"""A comparison in pieces that can run anywhere: fits of priors, and groups of cells that adapt together.

What runs together is decided by the plan alone, never by who runs it or by what is done already, so every engine and
every resumed run computes the same batches.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from math import ceil
from pathlib import Path

from promptprior.backbone import Backbone
from promptprior.compare.cost_estimate import cell_cost, source_cost
from promptprior.compare.plan import RESULTS_VERSION, Cell, Plan, Tasks
from promptprior.config.mapping import stable_hash
from promptprior.fit import source_settings
from promptprior.methods import Method
from promptprior.methods.shared.source_prompts import learns_from_tasks, prior_origin

COST = "cost.json"


@dataclass(frozen=True, eq=False)
class WorkerContext:
    """What all work of a comparison is done with."""

    plan: Plan
    tasks: Tasks
    backbone: Backbone


@dataclass(frozen=True, eq=False)
class Fit:
    """A prior to be fitted, and the folder that keeps it. `tokens` is the estimated cost."""

    method: Method
    seed: int
    folder: Path
    tokens: float

    @property
    def key(self) -> str:
        """What tells it from other work."""
        return self.folder.name

    @property
    def label(self) -> str:
        """How progress names it."""
        return f"{self.method.name}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Group:
    """Cells of one method and seed that adapt as copies of one run, from the prior in a folder (None without one).

    `tokens` is the estimated cost of adapting and testing them. `known` are keys of cells that have a result already
    and only keep the others company.
    """

    method: Method
    seed: int
    cells: tuple[Cell, ...]
    prior: Path | None
    tokens: float
    known: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """What tells it from other work: its cells."""
        return stable_hash([cell.key for cell in self.cells])

    @property
    def label(self) -> str:
        """How progress names it."""
        return f"{self.method.name}, seed {self.seed}" if self.seed else self.method.name

    @property
    def missing(self) -> list[Cell]:
        """The cells without a result."""
        return [cell for cell in self.cells if cell.key not in self.known]


Work = Fit | Group


def work_folder(output: Path, work: Work) -> Path:
    """Where unfinished work keeps its checkpoints: a prior's own folder, or one under work/."""
    return work.folder if isinstance(work, Fit) else output / "work" / work.key


def works(worker_context: WorkerContext, wanted: Sequence[Cell], done: Collection[str]) -> list[Work]:
    """All that is left to do of the wanted cells, in their order; a fit stands before the first group that needs it."""
    left: list[Work] = []
    seen: set[Path | None] = {None}
    for some in parts(wanted, worker_context.plan.together):
        missing = tuple(cell for cell in some if cell.key not in done)
        if missing:
            group = make_group(worker_context, tuple(some) if some[0].method.trains_targets_jointly else missing, done)
            if group.prior not in seen and not is_kept(group.prior):
                left.append(make_fit(worker_context, group))
            seen.add(group.prior)
            left.append(group)
    return left


def parts(wanted: Sequence[Cell], together: int) -> Iterator[Sequence[Cell]]:
    """The cells of each method and seed, in parts of nearly equal size, none above `together`; whole where targets
    train together first."""
    for (method, _), some in groupby(wanted, lambda cell: (cell.method, cell.seed)):
        cells = list(some)
        count = 1 if method.trains_targets_jointly else ceil(len(cells) / together)
        ends = [len(cells) * part // count for part in range(count + 1)]
        yield from (cells[start:end] for start, end in pairwise(ends))


def make_group(worker_context: WorkerContext, cells: tuple[Cell, ...], done: Collection[str]) -> Group:
    """Cells of one method and seed as a group."""
    known = frozenset(cell.key for cell in cells if cell.key in done)
    method, seed = cells[0].method, cells[0].seed
    prior = prior_folder(worker_context, method, worker_context.plan.prior_seed(seed)) if method.needs_sources else None
    return Group(
        method,
        seed,
        cells,
        prior,
        sum(cell_cost(worker_context.backbone, cell, worker_context.plan) for cell in cells),
        known,
    )


def make_fit(worker_context: WorkerContext, group: Group) -> Fit:
    """The fit of a group's prior."""
    assert group.prior is not None
    settings = worker_context.plan.resolved()
    tokens = 0.0
    if learns_from_tasks(group.method):
        tokens = group.method.source_passes(settings) * source_cost(
            worker_context.backbone, worker_context.tasks.sources, settings.source, settings.length
        )
    return Fit(group.method.source_recipe(), worker_context.plan.prior_seed(group.seed), group.prior, tokens)


def prior_folder(worker_context: WorkerContext, method: Method, seed: int) -> Path:
    """Where the prior of a method and seed is kept. Another setting of the source stage has another folder; methods
    and settings that differ only on targets share one."""
    stage = method.source_recipe()
    key = stable_hash(
        [
            RESULTS_VERSION,
            worker_context.backbone.card.fingerprint,
            str(worker_context.backbone.frozen.dtype),
            stage,
            source_settings(worker_context.plan.resolved()),
            prior_origin(stage, worker_context.tasks.sources),
        ]
    )
    return worker_context.plan.output / "priors" / f"{stage.name}-seed{seed}-{key[:8]}"


def is_kept(prior: Path | None) -> bool:
    """Whether a prior's folder is complete: its cost is written last."""
    return prior is not None and (prior / COST).exists()


@dataclass
class Queue:
    """Work that waits, in order. A group can start when its prior is kept; failed work comes again, `retries` times.

    A group that failed comes again cell by cell, so that one bad cell takes no other with it.
    """

    waiting: list[Work]
    retries: int
    failures: Counter[str] = field(default_factory=Counter)

    def take(self) -> Work | None:
        """The first work that can start, no longer in the queue; None when there is none now."""
        for place, work in enumerate(self.waiting):
            if isinstance(work, Fit) or work.prior is None or is_kept(work.prior):
                return self.waiting.pop(place)
        return None

    def fail(self, work: Work) -> list[Cell]:
        """Queue failed work again, last; returns the cells that are given up."""
        again = pieces(work)
        self.failures.update(one.key for one in again)
        if max(self.failures[one.key] for one in again) <= self.retries:
            self.waiting += again
            return []
        return work.missing if isinstance(work, Group) else self.without(work)

    def without(self, fit: Fit) -> list[Cell]:
        """Drop the groups whose prior cannot be fitted; returns their cells."""
        lost = [w for w in self.waiting if isinstance(w, Group) and w.prior == fit.folder]
        self.waiting = [w for w in self.waiting if w not in lost]
        return [cell for group in lost for cell in group.missing]


def pieces(work: Work) -> list[Work]:
    """Failed work as it is tried again: each cell of a group by itself, unless they need each other."""
    if isinstance(work, Fit) or work.method.trains_targets_jointly:
        return [work]
    return [replace(work, cells=(cell,), tokens=work.tokens / len(work.cells)) for cell in work.cells]

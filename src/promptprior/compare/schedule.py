"""A comparison in pieces that can run anywhere: fits of priors, and groups of cells that adapt together.

What runs together is decided by the plan alone, never by who runs it or by what is done already, so every executor and
every resumed run computes the same batches. A group of which some cells are missing runs whole again.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from math import ceil
from pathlib import Path

from promptprior.backbone import Backbone
from promptprior.compare.plan import RESULTS_VERSION, Cell, Plan, Tasks
from promptprior.config.mapping import stable_hash
from promptprior.cost_estimate import TargetSize, adapting_cost, source_cost, target_size, text_tokens
from promptprior.fit import source_settings
from promptprior.methods import Method
from promptprior.methods.shared.source_prompts import learns_from_tasks, prior_origin

PRIOR_COST = "cost.json"
WORK = "work"  # folder for the checkpoints of unfinished groups


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
    label: str  # how progress names it
    folder: Path
    tokens: float

    @property
    def key(self) -> str:
        """What tells it from other work."""
        return self.folder.name


@dataclass(frozen=True, eq=False)
class Group:
    """Cells of one method and seed that adapt as copies of one run, from the prior in a folder (None without one).

    `tokens` is the estimated cost of adapting and testing them. `known` are keys of cells that have a result already,
    which stays; they run again only so that the others run in the same batches as ever.
    """

    method: Method
    seed: int
    label: str
    cells: tuple[Cell, ...]
    prior: Path | None
    tokens: float
    known: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """What tells it from other work: its cells."""
        return group_key(self.cells)

    @property
    def missing(self) -> list[Cell]:
        """The cells without a result."""
        return [cell for cell in self.cells if cell.key not in self.known]


Work = Fit | Group


def group_key(cells: Sequence[Cell]) -> str:
    """What tells a group from others."""
    return stable_hash([cell.key for cell in cells])


def work_folder(output: Path, work: Work) -> Path:
    """Where unfinished work keeps its checkpoints: a prior's own folder, or one under work/."""
    return work.folder if isinstance(work, Fit) else output / WORK / work.key


def prior_folder(context: WorkerContext, method: Method, seed: int) -> Path:
    """Where the prior of a method and seed is kept; the folder's name is the prior's id.

    Another setting of the source stage has another folder; methods and settings that differ only on targets share one.
    """
    stage, plan = method.source_recipe(), context.plan
    identity = [
        RESULTS_VERSION,
        context.backbone.card.fingerprint,
        str(context.backbone.frozen.dtype),
        stage,
        source_settings(plan.resolved()),
        prior_origin(stage, context.tasks.sources),
    ]
    return plan.output / "priors" / f"{stage.name}-seed{seed}-{stable_hash(identity)[:8]}"


def is_fitted(prior: Path) -> bool:
    """Whether a prior's folder is complete: its cost is written last."""
    return (prior / PRIOR_COST).exists()


def plan_groups(plan: Plan, wanted: Sequence[Cell]) -> Iterator[tuple[Cell, ...]]:
    """Which cells adapt together: of one method and seed, in parts of nearly equal size.

    Where a target's result depends on the other targets, all stay in one part.
    """
    for _, batch in groupby(wanted, lambda cell: (cell.method, cell.seed)):
        cells = tuple(batch)
        count = 1 if cells[0].method.trains_targets_jointly else ceil(len(cells) / plan.cells_per_run)
        ends = [len(cells) * part // count for part in range(count + 1)]
        yield from (cells[start:end] for start, end in pairwise(ends))


def remaining_work(context: WorkerContext, wanted: Sequence[Cell], done: Collection[str]) -> list[Work]:
    """All that is left to do of the wanted cells, in their order; a fit stands before the first group that needs it."""
    plan, settings = context.plan, context.plan.resolved()
    work: list[Work] = []
    priors: set[Path] = set()
    sizes: dict[str, TargetSize] = {}  # of targets; measured once, for many cells share a target
    tokens_of_sources: float | None = None  # likewise
    for cells in plan_groups(plan, wanted):
        known = frozenset(cell.key for cell in cells if cell.key in done)
        if len(known) == len(cells):
            continue
        method, seed = cells[0].method, cells[0].seed
        prior, prior_seed = None, plan.prior_seed(seed)
        if method.needs_sources:
            prior = prior_folder(context, method, prior_seed)
            if prior not in priors and not is_fitted(prior):
                tokens = 0.0
                if learns_from_tasks(method):
                    sources = context.tasks.sources
                    if tokens_of_sources is None:
                        tokens_of_sources = text_tokens(context.backbone, sources)
                    tokens = source_cost(method, tokens_of_sources, len(sources), settings)
                stage = method.source_recipe()
                work.append(Fit(stage, prior_seed, f"{stage.name}, seed {prior_seed}", prior, tokens))
            priors.add(prior)
        tokens = 0.0
        for cell in cells:
            fingerprint, tested = cell.target.fingerprint, len(plan.test_of(cell.target))
            if fingerprint not in sizes:
                sizes[fingerprint] = target_size(context.backbone, cell.target)
            tokens += adapting_cost(method, sizes[fingerprint], cell.k or plan.shots[0], settings, tested)
        label = f"{method.name}, seed {seed}" if method.learns_from_shots else method.name
        work.append(Group(method, seed, label, cells, prior, tokens, known))
    return work


@dataclass
class Queue:
    """Work that waits, in order, and work that runs. A group can start when its prior is saved."""

    waiting: list[Work]
    retries: int
    running: list[Work] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def take(self) -> Work | None:
        """The first work that can start, which runs from now on; None when there is none."""
        for work in self.waiting:
            if isinstance(work, Fit) or work.prior is None or is_fitted(work.prior):
                self.waiting.remove(work)
                self.running.append(work)
                return work
        return None

    def fail(self, work: Work) -> list[Cell]:
        """Queue failed work again, last, up to `retries` times; returns the cells that are given up.

        Of a group the missing cells come again one by one, so that one bad cell takes no other with it, unless the
        cells train jointly. A prior that cannot be fitted takes with it all groups that wait for it.
        """
        again: list[Work] = [work]
        if isinstance(work, Group) and not work.method.trains_targets_jointly:
            tokens = work.tokens / len(work.cells)
            again = [replace(work, cells=(cell,), tokens=tokens, known=frozenset()) for cell in work.missing]
        self.failures.update(piece.key for piece in again)
        if max(self.failures[piece.key] for piece in again) <= self.retries:
            self.waiting += again
            return []
        if isinstance(work, Group):
            return work.missing
        lost = [w for w in self.waiting if isinstance(w, Group) and w.prior == work.folder]
        self.waiting = [w for w in self.waiting if w not in lost]
        return [cell for group in lost for cell in group.missing]

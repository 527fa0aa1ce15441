"""Seeded draws: which examples a step sees. Every draw is a pure function of (seed, step), so a run that
was killed resumes to the same batches without replaying them."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch
from typing_extensions import TypeVar

from promptprior.config.choices import DevFrom, RateKind, ShotsAre, TestRows
from promptprior.errors import DataError, SpecError
from promptprior.notation import Float, Int, Tensor
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.task import Example, Task, normalised

CROSSFIT_SEEDS = (13, 21, 42, 87, 100)
Drawn = TypeVar("Drawn", covariant=True, default=Any)
GOLDEN = (math.sqrt(5) - 1) / 2
BUCKET = 16  # batches that are drawn together and sorted by length


def generator(*names: object) -> torch.Generator:
    """An independent stream of random numbers for each sequence of names.

    >>> a, b = generator(13, "data"), generator(13, "data")
    >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
    True
    """
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Shots:
    """The few labelled examples of an episode: `train` is learned from, `dev` selects; they share nothing."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]


def k_shot(
    task: Task,
    k: int,
    seed: int,
    dev_limit: int | None = None,
    shots_are: ShotsAre = "class",
    dev_from: DevFrom = "train",
) -> Shots:
    """K examples per class to train on and K others for dev, from the task's training split (CrossFit's draw).

    With `shots_are` "total" all classes together have K on either side, spread evenly; a draw says which classes have
    one more, and with fewer shots than classes some have none. With `dev_from` "validation" dev is the validation
    split, all of it or `dev_limit` examples spread evenly, and training may have whole classes.

    With `dev_limit` dev has at most so many in all, spread evenly over the classes (at least one of each), and a class
    that is too small for both gives the rest to training. With a large K the draw is then the full data.

    A free-text task, or one whose choices differ by example, has one class. No two drawn examples share
    their normalised text, and none stands in the test split. Classes that are too small give what they
    have, halved between the two sides (without `dev_limit`). Raises DataError when a class cannot give one example to
    each, and SpecError for a `k` or `dev_limit` below 1.
    """
    if k < 1:
        raise SpecError(f"shots must be at least 1; got {k}")
    if dev_limit is not None and dev_limit < 1:
        raise SpecError(f"dev limit (--dev-limit) must be at least 1, or nothing for none; got {dev_limit}")
    seen = {normalised(e.text) for e in task.examples.get("test", ())}
    by_class: dict[object, list[Example]] = defaultdict(list)
    held_out: dict[object, list[Example]] = defaultdict(list)
    has_own_dev = dev_from == "validation"
    sides = [(held_out, task.split("validation"))] if has_own_dev else []
    for side, examples in [*sides, (by_class, task.split("train"))]:
        for example in examples:
            key = normalised(example.text)
            if key not in seen:
                seen.add(key)
                side[class_of(task, example)].append(example)
    names = sorted(by_class, key=str)
    shares = dict.fromkeys(names, k)
    if shots_are == "total":
        drawn = torch.randperm(len(names), generator=generator(seed, task.name, "shots of all classes")).tolist()
        even, rest = divmod(k, max(1, len(names)))
        shares = {names[i]: even + (place < rest) for place, i in enumerate(drawn)}
    if not by_class:
        raise DataError(
            f"task {task.name!r}: every training text stands in its test split too; nothing is left to draw"
        )
    train: list[Example] = []
    dev: list[Example] = []
    for name, pool in sorted(held_out.items(), key=lambda item: str(item[0])):
        most = len(pool) if dev_limit is None else max(1, dev_limit // len(held_out))
        order = torch.randperm(len(pool), generator=generator(seed, task.name, "dev", name)).tolist()
        dev += [pool[i] for i in sorted(order[:most])]
    for name in names:
        pool, share = by_class[name], shares[name]
        if len(pool) < 2 and not has_own_dev:
            raise DataError(
                f"task {task.name!r}: class {name!r} has {len(pool)} usable training example(s); k-shot draws "
                "need at least 2 (one to train on, one for dev)"
            )
        to_train = to_dev = min(share, len(pool) // 2)
        if has_own_dev:
            to_train, to_dev = min(share, len(pool)), 0
        elif dev_limit is not None:
            to_dev = min(to_dev, max(1, dev_limit // len(by_class)))
            to_train = min(share, len(pool) - to_dev)
        order = torch.randperm(len(pool), generator=generator(seed, task.name, "shots", name)).tolist()
        train += [pool[i] for i in order[:to_train]]
        dev += [pool[i] for i in order[to_train : to_train + to_dev]]
    return Shots(tuple(train), tuple(dev))


def class_of(task: Task, example: Example) -> object:
    """The class a draw balances over: the label, where all examples share one list of choices."""
    fixed = task.is_choice and len({e.choices for e in task.split("train")[:50]}) == 1
    return example.label if fixed else "all"


def select_test(task: Task, limit: int | None = None, rows: TestRows = "first") -> tuple[Example, ...]:
    """The test examples of a task that scores are of: the first `limit`, or with "balanced" as many of each class.

    Balanced are the first of each class, in the order of the split, as many as the smallest class has and at most
    `limit` over the number of classes: any constant answer then has chance. A task without classes gives its first.
    Raises SpecError for a limit below one row of each class.
    """
    examples = task.split("test")
    if rows == "first":
        return examples[:limit]
    by_class: dict[object, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        by_class[class_of(task, example)].append(i)
    if limit is not None and limit < len(by_class):
        raise SpecError(
            f"test limit {limit} (--test-limit): expected at least {len(by_class)} for balanced rows of the "
            f"{len(by_class)} classes of task {task.name!r}"
        )
    each = min(len(examples) if limit is None else limit // len(by_class), *map(len, by_class.values()))
    return tuple(examples[i] for i in sorted(i for own in by_class.values() for i in own[:each]))


def mixture_rates(
    sizes: Sequence[int], kind: RateKind = "capped", cap: int = 2**18, temperature: float = 2.0
) -> Float[Tensor, " tasks"]:
    """How often each task is drawn: proportional to its size, to `min(size, cap)`, to `size^(1/temperature)`, or equal.
    Rates sum to 1. Raises SpecError for another `kind`.

    >>> mixture_rates([100, 300], "proportional").tolist()
    [0.25, 0.75]
    """
    size = torch.tensor(sizes, dtype=torch.float64)
    weights = {
        "proportional": size,
        "capped": size.clamp(max=cap),
        "temperature": size ** (1 / temperature),
        "uniform": torch.ones_like(size),
    }
    if kind not in weights:
        raise SpecError(f"mixture rates {kind!r}: expected one of {', '.join(weights)}")
    return weights[kind] / weights[kind].sum()


class Draws(Protocol[Drawn]):
    """What a training loop draws from: a Batch (or what else its rule learns from) for every step, the same for the
    same step."""

    def batch(self, step: int) -> Drawn:
        """What one step sees."""
        ...


@dataclass(frozen=True)
class Pool:
    """Tokenised examples of one task, as drawn for one copy of the parameters."""

    items: Sequence[Tokens]
    task: int = 0
    copy: int = 0


@dataclass(frozen=True)
class MixtureDraws:
    """Batches of mixed tasks for ONE copy: `batch_size` texts a step, tasks at the given `rates`, which are shares of
    the texts.

    Batches are drawn in groups of `BUCKET`, sorted by length inside the group and dealt out in random
    order, so that rows of a batch have like lengths and every text stays as likely.
    """

    pools: Sequence[Pool]
    rates: Sequence[float]
    batch_size: int
    seed: int

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        group, turn = divmod(step, BUCKET)
        g = generator(self.seed, "mixture", group)
        count = BUCKET * self.batch_size
        tasks = torch.multinomial(torch.tensor(self.rates), count, replacement=True, generator=g).tolist()
        drawn = [self.pools[task] for task in tasks]
        texts = [(pool, int(torch.randint(len(pool.items), (1,), generator=g))) for pool in drawn]
        texts.sort(key=lambda text: len(text[0].items[text[1]]))
        start = int(torch.randperm(BUCKET, generator=g)[turn]) * self.batch_size
        return collate_drawn(
            texts[start : start + self.batch_size], step, {pool.copy: self.seed for pool in self.pools}
        )


@dataclass(frozen=True)
class StratifiedDraws:
    """Batches in which every task has its share, for ONE copy: what a posterior over all tasks learns from.

    Of `batch_size` texts task t has `text_rates[t]` of them, rounded up or down so that the mean over steps is exact
    (systematic sampling of the remainders). With as many texts as tasks, or more, every step sees every task: rates
    below one text a step are raised to it. With fewer, tasks take turns. Texts of a task are drawn evenly, with
    replacement, whatever their length.
    """

    pools: Sequence[Pool]
    rates: Sequence[float]
    batch_size: int
    seed: int

    @cached_property
    def text_rates(self) -> tuple[float, ...]:
        """The share of the texts that each task has in the mean; sums to one."""
        rates = torch.tensor(self.rates, dtype=torch.float64)
        rates, least = rates / rates.sum(), 1 / self.batch_size
        raised = torch.zeros(len(rates), dtype=torch.bool)
        if len(rates) > self.batch_size:
            return tuple(rates.tolist())
        while bool((low := (rates < least) & ~raised).any()):
            raised |= low
            rest = 1 - least * int(raised.sum())
            rates = torch.where(raised, least, rates * rest / rates[~raised].sum().clamp(min=1e-300))
        return tuple(rates.tolist())

    def batch(self, step: int) -> Batch:
        """The batch of one step; texts of a task stand together."""
        g = generator(self.seed, "stratified", step)
        texts = [
            (pool, int(torch.randint(len(pool.items), (1,), generator=g)))
            for pool, count in zip(self.pools, self.counts(step), strict=True)
            for _ in range(count)
        ]
        return collate_drawn(texts, step, {pool.copy: self.seed for pool in self.pools})

    def counts(self, step: int) -> list[int]:
        """How many texts of each task a step has."""
        wanted = torch.tensor(self.text_rates, dtype=torch.float64) * self.batch_size
        whole = (wanted + 1e-9).floor()  # a rate of exactly n texts must not lose one to rounding
        rest = self.batch_size - int(whole.sum())
        # Points u, u + 1, ... on the remainders laid end to end. u is uniform over seeds, and steps of the golden
        # ratio spread it evenly over steps; the order of tasks decides who takes turns with whom.
        start = torch.rand(1, generator=(g := generator(self.seed, "stratified")), dtype=torch.float64)
        order = torch.randperm(len(wanted), generator=g)
        offset = (float(start) + step * GOLDEN) % 1
        ends = (wanted - whole).clamp(min=0)[order].cumsum(0)
        ends = ends * (rest / ends[-1].clamp(min=1e-300))
        upto = (ends - offset).ceil().clamp(min=0)  # points before the end of each remainder
        extra = torch.diff(upto, prepend=torch.zeros(1, dtype=torch.float64))
        whole[order] += extra
        return [int(count) for count in whole]


@dataclass(frozen=True)
class StochasticDraws:
    """Batches of `batch_size` texts of a few tasks for ONE copy: stochastic task sampling (Wang et al. 2023, MPT).

    A step draws how many times it draws a task, evenly from 2 to their number (at most `batch_size`); then tasks at
    the given rates, with replacement. Each time gets an even share of the batch, and one of them, at random, what the
    division leaves. A task drawn twice has two shares.
    """

    pools: Sequence[Pool]
    rates: Sequence[float]
    batch_size: int
    seed: int

    def batch(self, step: int) -> Batch:
        """The batch of one step; texts of a task stand together."""
        g = generator(self.seed, "stochastic", step)
        drawn = [self.pools[task] for task, share in sorted(self.shares(g)) for _ in range(share)]
        texts = [(pool, int(torch.randint(len(pool.items), (1,), generator=g))) for pool in drawn]
        return collate_drawn(texts, step, {pool.copy: self.seed for pool in self.pools})

    def shares(self, g: torch.Generator) -> list[tuple[int, int]]:
        """The tasks drawn, by their place among the pools, each with its number of texts."""
        most = min(len(self.pools), self.batch_size)
        times = int(torch.randint(min(2, most), most + 1, (1,), generator=g))
        tasks = torch.multinomial(torch.tensor(self.rates), times, replacement=True, generator=g).tolist()
        even, rest = divmod(self.batch_size, times)
        lucky = int(torch.randint(times, (1,), generator=g))
        return [(task, even + rest * (time == lucky)) for time, task in enumerate(tasks)]


@dataclass(frozen=True)
class EpisodeDraws:
    """`batch_size` texts a step for EVERY pool (each pool its own copy), in shuffled epochs.

    A pool smaller than `batch_size` gives all it has. This is what k-shot episodes, independent source
    prompts and inner loops train on: copies in one batch, each seeing only its own examples.
    """

    pools: Sequence[Pool]
    batch_size: int
    seeds: Sequence[int]

    def batch(self, step: int) -> Batch:
        """The batch of one step: the next `batch_size` texts of each pool's shuffled epochs."""
        texts = []
        for pool, seed in zip(self.pools, self.seeds, strict=True):
            size = len(pool.items)
            take = min(self.batch_size, size)
            epoch, turn = divmod(step, math.ceil(size / take))
            order, start = epoch_order(size, seed, epoch), turn * take
            places = order[start : start + take].tolist() + order[: max(0, start + take - size)].tolist()
            texts += [(pool, place) for place in places]
        return collate_drawn(texts, step, dict(zip((pool.copy for pool in self.pools), self.seeds, strict=True)))


@lru_cache(maxsize=16)  # of a pool of hundreds of thousands it takes milliseconds, at every step
def epoch_order(size: int, seed: int, epoch: int) -> Int[Tensor, " size"]:
    """The order of a pool's texts in one epoch."""
    return torch.randperm(size, generator=generator(seed, "epoch", epoch))


def collate_drawn(texts: Sequence[tuple[Pool, int]], step: int, seeds: Mapping[int, int]) -> Batch:
    """A training batch of texts, each named by its pool and its place there; `seeds` are the seeds of copies."""
    return collate(
        [pool.items[place] for pool, place in texts],
        [pool.copy for pool, _ in texts],
        [pool.task for pool, _ in texts],
        [place for _, place in texts],
        step,
        [seeds.get(copy, -1) for copy in range(max(seeds) + 1)],
    )

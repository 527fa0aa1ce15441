"""Seeded draws: which examples a step sees. Every draw is a pure function of (seed, step), so a run that
was killed resumes to the same batches without replaying them."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from typing_extensions import TypeVar

from promptprior.config.choices import RateKind
from promptprior.errors import DataError, SpecError
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.task import Example, Task, normalised

CROSSFIT_SEEDS = (13, 21, 42, 87, 100)
Drawn = TypeVar("Drawn", covariant=True, default=Any)
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


def k_shot(task: Task, k: int, seed: int, dev_limit: int | None = None) -> Shots:
    """K examples per class to train on and K others for dev, from the task's training split (CrossFit's draw).

    With `dev_limit` dev has at most so many in all, spread evenly over the classes (at least one of each), and a class
    that is too small for both gives the rest to training: with a large K the draw is then the full data.

    A free-text task, or one whose choices differ by example, has one class. No two drawn examples share
    their normalised text, and none stands in the test split. Classes that are too small give what they
    have, halved between the two sides (without `dev_limit`). Raises DataError when a class cannot give one example to
    each, and SpecError for a `k` or `dev_limit` below 1.
    """
    if k < 1:
        raise SpecError(f"shots must be at least 1; got {k}")
    if dev_limit is not None and dev_limit < 1:
        raise SpecError(f"dev limit (--dev-limit) must be at least 1, or nothing for none; got {dev_limit}")
    by_class: dict[object, list[Example]] = defaultdict(list)
    seen = {normalised(e.text) for e in task.examples.get("test", ())}
    for example in task.split("train"):
        key = normalised(example.text)
        if key not in seen:
            seen.add(key)
            by_class[class_of(task, example)].append(example)
    train: list[Example] = []
    dev: list[Example] = []
    for name, pool in sorted(by_class.items(), key=lambda item: str(item[0])):
        if len(pool) < 2:
            raise DataError(
                f"task {task.name!r}: class {name!r} has {len(pool)} usable training example(s); k-shot draws "
                "need at least 2 (one to train on, one for dev)"
            )
        fit, select = halves(k, len(pool), None if dev_limit is None else max(1, dev_limit // len(by_class)))
        order = torch.randperm(len(pool), generator=generator(seed, task.name, "shots", name)).tolist()
        train += [pool[i] for i in order[:fit]]
        dev += [pool[i] for i in order[fit : fit + select]]
    return Shots(tuple(train), tuple(dev))


def halves(k: int, pool: int, most: int | None) -> tuple[int, int]:
    """How many of a class's examples are learned from and how many select, of which there are at most `most`.

    >>> halves(16, 100, None), halves(16, 20, None), halves(16, 20, 2), halves(1000, 100, 8)
    ((16, 16), (10, 10), (16, 2), (92, 8))
    """
    even = min(k, pool // 2)
    if most is None:
        return even, even
    select = min(even, most)
    return min(k, pool - select), select


def class_of(task: Task, example: Example) -> object:
    """The class a draw balances over: the label, where all examples share one list of choices."""
    fixed = task.is_choice and len({e.choices for e in task.split("train")[:50]}) == 1
    return example.label if fixed else "all"


def mixture_rates(
    sizes: Sequence[int], kind: RateKind = "capped", cap: int = 2**18, temperature: float = 2.0
) -> Float[Tensor, " tasks"]:
    """How often each task is drawn: proportional to its size, to min(size, cap), to size^(1/temperature), or equal.

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
    """Batches of mixed tasks for ONE copy: `batch_size` texts a step, tasks at the given rates.

    Batches are drawn in groups of `BUCKET`, sorted by length inside the group and dealt out in random
    order, so that rows of a batch have like lengths and every text stays as likely.
    """

    pools: Sequence[Pool]
    rates: Sequence[float]
    batch_size: int
    seed: int

    def batch(self, step: int) -> Batch:
        """The batch of one step."""
        group, place = divmod(step, BUCKET)
        g = generator(self.seed, "mixture", group)
        count = BUCKET * self.batch_size
        which = torch.multinomial(torch.tensor(self.rates), count, replacement=True, generator=g).tolist()
        drawn = []
        for pool in (self.pools[w] for w in which):
            item = int(torch.randint(len(pool.items), (1,), generator=g))
            drawn.append((pool.items[item], pool))
        drawn.sort(key=lambda pair: len(pair[0]))
        start = int(torch.randperm(BUCKET, generator=g)[place]) * self.batch_size
        chosen = drawn[start : start + self.batch_size]
        return collate(
            [tokens for tokens, _ in chosen],
            [pool.copy for _, pool in chosen],
            [pool.task for _, pool in chosen],
        )


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
        """The batch of one step."""
        parts = [(self.items_of(pool, seed, step), pool) for pool, seed in zip(self.pools, self.seeds, strict=True)]
        return collate(
            [tokens for items, _ in parts for tokens in items],
            [pool.copy for items, pool in parts for _ in items],
            [pool.task for items, pool in parts for _ in items],
        )

    def items_of(self, pool: Pool, seed: int, step: int) -> list[Tokens]:
        """The texts one pool gives to a step: the next `batch_size` of its shuffled epochs."""
        size = len(pool.items)
        take = min(self.batch_size, size)
        per_epoch = math.ceil(size / take)
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(size, generator=generator(seed, "epoch", epoch)).tolist()
        places = [(place * take + i) % size for i in range(take)]
        return [pool.items[order[p]] for p in places]

"""Stochastic task sampling (Wang et al. 2023, MPT): every batch is of a few tasks, and of how many is drawn too."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptprior.tasks.sampling.batch import Batch
from promptprior.tasks.sampling.draws import Pool, collate_drawn, generator


@dataclass(frozen=True)
class StochasticDraws:
    """Batches of `batch_size` texts for ONE copy, a pure function of (seed, step).

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

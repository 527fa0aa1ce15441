"""Stein variational gradient descent: M copies as particles of one posterior (Liu & Wang 2016, arXiv 1608.04471).

The posterior is p(x) exp(-count * loss(x)), where loss is the mean over rows and `count` says how many observations it
stands for. Everything is divided by count, so that forces are in units of the mean loss:

    direction_i = (1/M) sum_j [ k(x_j, x_i) (grad loss_j + grad penalty_j) - (strength / count) grad_{x_j} k(x_j, x_i) ]

and any optimiser takes it as a gradient: with M = 1 this is `Descent`, number for number. The drawn batch is read by
all particles in one engine call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.notation import Tensor
from promptprior.objectives.objective import Objective, copies_of, loss_and_gradient
from promptprior.rules.descent import Penalty, with_penalty
from promptprior.rules.optimiser import OptimiserRule, optimiser_step
from promptprior.rules.rule import Info, State
from promptprior.rules.stein_kernels import Kernel, Rbf, off_diagonal
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class Repulsion:
    """A factor on the repulsive force, moved linearly from `first` to `last` over `steps` (annealing).

    1 is plain SVGD. On a unit Gaussian with d coordinates in a block, the variance kept is `last` times log(M + 1) / d.
    """

    last: float = 1.0
    first: float | None = None
    steps: int = 1

    def at(self, step: int) -> float:
        """The factor at a step.

        >>> [Repulsion(last=1.0, first=3.0, steps=2).at(s) for s in range(4)]
        [3.0, 2.0, 1.0, 1.0]
        """
        done = min(1.0, step / self.steps)
        first = self.last if self.first is None else self.first
        return first + done * (self.last - first)


@dataclass(frozen=True)
class Svgd(OptimiserRule):
    """One optimiser step on minus the Stein direction.

    `count` tempers: the number of tasks counts each source once, the number of training examples gives the true
    posterior. `penalty` is minus the log-prior over count. `task_weights` multiplies the rows of each task: wanted
    share over drawn rate, whose mean under the rates is 1. The sum over a batch is divided by its number of rows, so
    that the loss is an unbiased estimate for the wanted mixture whatever the rates. `scale`: the embedding scale, in
    which distances are reported.
    """

    kernel: Kernel = Rbf()
    count: float = 1.0
    repulsion: Repulsion = Repulsion()
    penalty: Penalty | None = None
    task_weights: Sequence[float] | None = None
    clip: float | None = None
    scale: float = 1.0

    def step(self, state: State, batch: Batch, objective: Objective) -> tuple[State, Info]:
        """One step of every particle on one batch, all of whose texts must be of copy 0.

        Logged, to tell whether the particles are more than separate chains and whether they have collapsed:
        `repulsion_ratio`, the norm of all repulsion over that of all attraction, and `kernel`, the mean off-diagonal
        value. Also `distance`, the mean distance of two particles, and `spread`, the standard deviation of an entry
        across particles, both in units of the embedding scale.
        """
        read = reweighted(batch, self.task_weights).tile(copies_of(state.params))
        loss, gradient = loss_and_gradient(objective, state.params, read)
        info: dict[str, Tensor] = {"loss": loss}
        if self.penalty is not None:
            info["penalty"], gradient = with_penalty(self.penalty, state.params, gradient)
        forces = self.kernel.stein(state.params, gradient)
        factor = self.repulsion.at(state.step) / self.count
        # minus the Stein direction: attraction less the weighted repulsion
        direction = {name: pull - factor * forces.repulsion[name] for name, pull in forces.attraction.items()}

        push, pull = (
            torch.stack([value.norm() for value in force.values()]).norm()
            for force in (forces.repulsion, forces.attraction)
        )
        particles, entries = len(forces.squared), sum(value[0].numel() for value in forces.attraction.values())
        distances = off_diagonal(forces.squared[None]).sqrt()  # [1, pairs]
        info |= {
            "repulsion_ratio": factor * push / pull.clamp(min=torch.finfo(pull.dtype).tiny),
            "kernel": forces.similarity,
            "distance": (distances.mean() if particles > 1 else distances.sum()) / self.scale,
            "spread": (forces.squared.sum() / 2 / particles**2 / entries).sqrt() / self.scale,
        }
        return optimiser_step(self.optimiser, self.clip, state, direction, info)


def reweighted(batch: Batch, task_weights: Sequence[float] | None) -> Batch:
    """The batch with rows weighted by their tasks, their sum to be divided by the rows; as it is without weights."""
    if task_weights is None:
        return batch
    by_task = torch.tensor(task_weights, dtype=batch.weight.dtype, device=batch.weight.device)
    return replace(batch, weight=batch.weight * by_task[batch.row_task], weight_total=float(batch.rows))

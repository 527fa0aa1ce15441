"""Inner loops: K steps on copies of the params, all copies in ONE engine call per step, and the backward pass through.

The backward pass is exact at any K with the memory of one step. Nothing is unrolled: the iterates are kept (they are
only prompts), and the cotangent of a loss at the end is carried back step by step. With p' = p - u f d(g, m), where g
is the gradient at p, u the unit of the inner optimiser, f the learned multipliers (Meta-SGD; 1 otherwise), d its
direction and m its memory,

    a      = dL/dp'                     the cotangent after the step
    b      = -(u f dd/dg)' a            … that passes through the gradient
    dL/dp  = a + H b                    H: Hessian of the step's loss at p; one product for all copies

and likewise for m and f by their chain rules. For SGD this is a - u H a, the product of Finn et al. 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from promptprior.errors import SpecError, TrainingError
from promptprior.notation import Float, Int, Memory, Params, Tensor
from promptprior.objectives.objective import Objective, loss_and_gradient
from promptprior.rules.curvature import hessian_product
from promptprior.tasks.sampling.batch import Batch

LEAST_MOVE = 1e-4  # root mean square of an entry's move, in units of the embedding scale: less changes nothing


@dataclass(frozen=True)
class InnerSgd:
    """Gradient descent in units of the embedding scale: a step is rate * scale^2 * gradient."""

    rate: float
    scale: float = 1.0
    scale_power: ClassVar[int] = 2

    def init(self, params: Params) -> Memory:  # noqa: ARG002
        """Nothing."""
        return {}

    def direction(self, gradient: Params, memory: Memory, step: int) -> tuple[Params, Memory]:  # noqa: ARG002
        """The gradient, and nothing to remember."""
        return gradient, {}


@dataclass(frozen=True)
class InnerAdam:
    """Adam in units of the embedding scale: a step moves an entry by about rate * scale.

    `eps` stands inside the root, so that entries with no gradient have a derivative. The first step is all but
    g / |g|: its second derivative is next to nothing, and exact MAML is close to first order there.
    """

    rate: float
    scale: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    scale_power: ClassVar[int] = 1

    def init(self, params: Params) -> Memory:
        """Zero moments."""
        return {f"{moment}/{n}": torch.zeros_like(p) for moment in ("mean", "square") for n, p in params.items()}

    def direction(self, gradient: Params, memory: Memory, step: int) -> tuple[Params, Memory]:
        """m / sqrt(v + eps^2), both corrected for their start at zero; differentiable in gradient and memory."""
        direction: Params = {}
        moments: Memory = {}
        for name, g in gradient.items():
            mean = self.beta1 * memory[f"mean/{name}"] + (1 - self.beta1) * g
            square = self.beta2 * memory[f"square/{name}"] + (1 - self.beta2) * g * g
            root = (square / (1 - self.beta2 ** (step + 1)) + self.eps**2).sqrt()
            direction[name] = mean / (1 - self.beta1 ** (step + 1)) / root
            moments |= {f"mean/{name}": mean, f"square/{name}": square}
        return direction, moments


InnerKind = Literal["sgd", "adam"]
InnerOptimiser = InnerSgd | InnerAdam
"""A differentiable optimiser: a step is rate * scale ** scale_power times `direction`."""


@dataclass(frozen=True)
class StepRecord:
    """What one inner step started from: enough to differentiate it later. `gradient` has the adapted names alone."""

    batch: Batch
    params: Params
    memory: Memory
    gradient: Params


@dataclass(frozen=True)
class Trajectory:
    """K inner steps of U units: what each started from, where they ended, the sum of their directions, and the losses.

    `losses` are those before each step. `displacement` is summed from the directions themselves: a difference of params
    would lose every step smaller than the rounding of the params (papers.md 3.6.1).
    """

    steps: tuple[StepRecord, ...]
    start: Params
    end: Params
    displacement: Params
    losses: Float[Tensor, "K U"]


@dataclass(frozen=True)
class Inner:
    """What adapts, and how: the parameters in `names` by an inner optimiser.

    All of them by default; Raghu et al. 2020 (ANIL) adapt only a part and meta-learn the rest.
    """

    optimiser: InnerOptimiser
    names: tuple[str, ...] | None = None

    def adapted_part(self, params: Params) -> Params:
        """The params that inner steps move. Raises SpecError for names that are not there."""
        if self.names is None:
            return dict(params)
        missing = sorted(set(self.names) - set(params))
        if missing or not self.names:
            raise SpecError(f"adapted names {missing} (inner_names): expected some of {', '.join(params)}")
        return {name: params[name] for name in self.names}

    def step(
        self, params: Params, gradient: Params, memory: Memory, lr_multipliers: Params, step: int
    ) -> tuple[Params, Memory, Params]:
        """One step: the adapted params, the memory, and the direction times multipliers. Differentiable in all."""
        direction, memory = self.optimiser.direction(gradient, memory, step)
        scaled = {n: lr_multipliers[n] * d if n in lr_multipliers else d for n, d in direction.items()}
        unit = self.optimiser.rate * self.optimiser.scale**self.optimiser.scale_power  # the step of direction 1
        return {n: p - unit * scaled[n] for n, p in params.items()}, memory, scaled

    def run(
        self,
        objective: Objective,
        start: Params,
        batches: Sequence[Batch],
        lr_multipliers: Params | None = None,
        pull: float = 0.0,
    ) -> Trajectory:
        """Adapt units, U copies of params, by one engine call per batch.

        `lr_multipliers` multiply the rate of every element (Meta-SGD). `pull` adds pull / 2 |p - start|^2 to the loss
        (iMAML); `backward` does not know of it.
        """
        params, own = start, self.adapted_part(start)
        memory = self.optimiser.init(own)
        total = {name: torch.zeros_like(value) for name, value in own.items()}
        records, losses = [], []
        for step, batch in enumerate(batches):
            loss, gradient = loss_and_gradient(objective, params, batch)
            gradient = {n: gradient[n] + pull * (params[n] - start[n]) for n in total}
            records.append(StepRecord(batch, params, memory, gradient))
            adapted, memory, direction = self.step(
                self.adapted_part(params), gradient, memory, lr_multipliers or {}, step
            )
            params = {**params, **adapted}
            total = {name: value + direction[name] for name, value in total.items()}
            losses.append(loss)
        return Trajectory(tuple(records), start, params, total, torch.stack(losses))

    def backward(
        self,
        objective: Objective,
        trajectory: Trajectory,
        end: Params,
        lr_multipliers: Params | None = None,
        order: Literal[1, 2] = 2,
    ) -> tuple[Params, Params]:
        """The gradient at a trajectory's start, and that of the multipliers, for a loss with gradient `end` at its end.

        `order` 1 leaves out everything that passes through inner gradients (FoMAML).
        """
        cotangent = dict(end)
        multipliers = lr_multipliers or {}
        of_memory = {n: torch.zeros_like(v) for n, v in self.optimiser.init(self.adapted_part(end)).items()}
        of_multipliers = {name: torch.zeros_like(value) for name, value in multipliers.items()}
        for step in reversed(range(len(trajectory.steps))):
            record = trajectory.steps[step]
            # the step itself again, with a graph from what it was made of: g, m and f of the docstring above
            sources = [
                {name: value.detach().requires_grad_() for name, value in tensors.items()}
                for tensors in (record.gradient, record.memory, multipliers)
            ]
            gradient, memory, rates = sources
            params, after, _ = self.step(self.adapted_part(record.params), gradient, memory, rates, step)
            parts = iter(
                torch.autograd.grad(
                    [*params.values(), *after.values()],
                    [value for tensors in sources for value in tensors.values()],
                    [*self.adapted_part(cotangent).values(), *(of_memory[name] for name in after)],
                    materialize_grads=True,
                )
            )
            # `of_gradient` is b; the cotangents of memory and multipliers go on to the step before
            of_gradient, of_memory, of_rates = ({name: next(parts) for name in tensors} for tensors in sources)
            of_multipliers = {name: value + of_rates[name] for name, value in of_multipliers.items()}
            if order == 2:  # a + H b
                product = hessian_product(objective, record.params, record.batch, of_gradient)
                cotangent = {name: value + product[name] for name, value in cotangent.items()}
            else:
                of_memory = {name: torch.zeros_like(value) for name, value in of_memory.items()}
        return cotangent, of_multipliers

    def distance(self, trajectory: Trajectory, check: bool) -> Float[Tensor, " U"]:
        """How far the inner steps moved each unit: root mean square over entries, in units of the scale.

        Taken from the params, not from the displacement: what rounding swallowed did not move. With `check` it raises
        TrainingError when a unit moved by next to nothing, because the meta-gradient would be a plain one.
        """
        gaps = [(trajectory.end[n] - trajectory.start[n]).flatten(1) for n in trajectory.displacement]
        distance = torch.cat(gaps, dim=1).square().mean(1).sqrt() / self.optimiser.scale
        if check and not bool((distance > LEAST_MOVE).all()):
            still = int((distance <= LEAST_MOVE).sum())
            raise TrainingError(
                f"the inner steps moved {still} of {len(distance)} units by at most {LEAST_MOVE:g} embedding scales "
                f"(the least: {float(distance.min()):.1e}), so nothing is adapted: {self.optimiser} does nothing. "
                "Inner rates are in units of the embedding scale; the published 3e-5 is such a no-op (raise inner_rate)"
            )
        return distance


def broadcast_to_units(params: Params, learner: Int[Tensor, " U"]) -> Params:
    """[C, …] to [U, …]: each unit's copy of the params of its meta-learner, the one `learner` names."""
    return {name: value.detach().index_select(0, learner.to(value.device)) for name, value in params.items()}


def mean_over_units(units: Params, learner: Int[Tensor, " U"], learners: int) -> Params:
    """[U, …] to [C, …]: the mean over each meta-learner's units."""
    means = {}
    for name, value in units.items():
        index = learner.to(value.device)
        total = value.new_zeros(learners, *value.shape[1:]).index_add(0, index, value)
        count = torch.bincount(index, minlength=learners).to(value.dtype)
        means[name] = total / count.view(-1, *[1] * (value.dim() - 1))
    return means

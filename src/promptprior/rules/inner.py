"""Inner loops: K steps on copies of the params, all copies in ONE engine call per step, and the way back through them.

The way back is exact at any K with the memory of one step. Nothing is unrolled: the iterates are kept (they are only
prompts), and what a loss at the end feels is carried back step by step. With p' = p - u f d(g, m), where g is the
gradient at p, u the unit of the inner optimiser, f the learned factors (Meta-SGD; 1 otherwise), d its direction and
m its memory,

    a      = dL/dp'                     what the loss feels after the step
    b      = -(u f dd/dg)' a            … through the gradient
    dL/dp  = a + H b                    H: Hessian of the step's loss at p; one product for all copies

and likewise for m and f by their chain rules. For SGD this is a - u H a, the product of Finn et al. 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from promptprior.errors import SpecError, TrainingError
from promptprior.notation import Float, Int, Memory, Params, Tensor
from promptprior.objectives.objective import Objective, loss_and_gradient
from promptprior.rules.curvature import hessian_product
from promptprior.rules.optimiser import Optimiser, clipped
from promptprior.rules.rule import Info, State
from promptprior.tasks.sampling.batch import Batch

NO_MOVE = 1e-4  # root mean square of an entry's move, in units of the embedding scale: less changes nothing


class InnerOptimiser(Protocol):
    """Directions of a differentiable optimiser; a step is `unit` times the direction."""

    @property
    def scale(self) -> float:
        """The embedding scale."""
        ...

    @property
    def unit(self) -> float:
        """How far a step of direction 1 goes, in absolute terms."""
        ...

    def init(self, params: Params) -> Memory:
        """What to remember before the first step."""
        ...

    def direction(self, gradient: Params, memory: Memory, step: int) -> tuple[Params, Memory]:
        """Which way to go, and what to remember; differentiable in gradient and memory."""
        ...


@dataclass(frozen=True)
class InnerSgd:
    """Gradient descent in units of the embedding scale: a step is rate * scale^2 * gradient."""

    rate: float
    scale: float = 1.0

    @property
    def unit(self) -> float:
        """Rate times squared scale."""
        return self.rate * self.scale**2

    def init(self, params: Params) -> Memory:  # noqa: ARG002
        """Nothing."""
        return {}

    def direction(self, gradient: Params, memory: Memory, step: int) -> tuple[Params, Memory]:  # noqa: ARG002
        """The gradient."""
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

    @property
    def unit(self) -> float:
        """Rate times scale."""
        return self.rate * self.scale

    def init(self, params: Params) -> Memory:
        """Zero moments."""
        zeros = {f"mean/{n}": torch.zeros_like(p) for n, p in params.items()}
        return zeros | {f"square/{n}": torch.zeros_like(p) for n, p in params.items()}

    def direction(self, gradient: Params, memory: Memory, step: int) -> tuple[Params, Memory]:
        """m / sqrt(v + eps^2), both corrected for their start."""
        direction: Params = {}
        after: Memory = {}
        for name, g in gradient.items():
            mean = self.beta1 * memory[f"mean/{name}"] + (1 - self.beta1) * g
            square = self.beta2 * memory[f"square/{name}"] + (1 - self.beta2) * g * g
            root = (square / (1 - self.beta2 ** (step + 1)) + self.eps**2).sqrt()
            direction[name] = mean / (1 - self.beta1 ** (step + 1)) / root
            after |= {f"mean/{name}": mean, f"square/{name}": square}
        return direction, after


InnerKind = Literal["sgd", "adam"]


def inner_optimiser(kind: InnerKind, rate: float, scale: float) -> InnerOptimiser:
    """The inner optimiser of a name. Raises SpecError for a rate that is not positive."""
    if rate <= 0:
        raise SpecError(f"inner rate {rate} (inner_rate): expected a positive number, in units of the embedding scale")
    return InnerSgd(rate, scale) if kind == "sgd" else InnerAdam(rate, scale)


@dataclass(frozen=True)
class Before:
    """Where one inner step began: enough to find its way back."""

    batch: Batch
    params: Params
    memory: Memory
    gradient: Params


@dataclass(frozen=True)
class Path:
    """K inner steps: where each began, where they ended, the sum of their directions, and the losses at their starts.

    `displacement` is summed from the directions themselves: a difference of params would lose every step smaller
    than the rounding of the params (papers.md 3.6.1).
    """

    steps: tuple[Before, ...]
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

    def adapted(self, params: Params) -> Params:
        """The params that inner steps move. Raises SpecError for names that are not there."""
        if self.names is None:
            return dict(params)
        missing = sorted(set(self.names) - set(params))
        if missing or not self.names:
            raise SpecError(f"adapted names {missing} (inner_names): expected some of {', '.join(params)}")
        return {name: params[name] for name in self.names}

    def moved(
        self, params: Params, gradient: Params, memory: Memory, lr_multipliers: Params, step: int
    ) -> tuple[Params, Memory, Params]:
        """One step: the adapted params, the memory, and the direction times factors. Differentiable in all."""
        direction, after = self.optimiser.direction(gradient, memory, step)
        scaled = {n: lr_multipliers[n] * d if n in lr_multipliers else d for n, d in direction.items()}
        return {n: p - self.optimiser.unit * scaled[n] for n, p in params.items()}, after, scaled

    def path(
        self,
        objective: Objective,
        start: Params,
        batches: Sequence[Batch],
        lr_multipliers: Params | None = None,
        pull: float = 0.0,
    ) -> Path:
        """Adapt copies: one engine call per batch.

        `lr_multipliers` multiply the rate of every element (Meta-SGD). `pull` adds pull / 2 |p - start|^2 to the loss
        (iMAML); `way_back` does not know of it.
        """
        params, memory = start, self.optimiser.init(self.adapted(start))
        total = {name: torch.zeros_like(value) for name, value in self.adapted(start).items()}
        steps, losses = [], []
        for step, batch in enumerate(batches):
            loss, gradient = loss_and_gradient(objective, params, batch)
            gradient = {n: gradient[n] + pull * (params[n] - start[n]) for n in total}
            steps.append(Before(batch, params, memory, gradient))
            adapted, memory, direction = self.moved(self.adapted(params), gradient, memory, lr_multipliers or {}, step)
            params = {**params, **adapted}
            total = {name: value + direction[name] for name, value in total.items()}
            losses.append(loss)
        return Path(tuple(steps), start, params, total, torch.stack(losses))

    def way_back(
        self,
        objective: Objective,
        path: Path,
        end: Params,
        lr_multipliers: Params | None = None,
        order: Literal[1, 2] = 2,
    ) -> tuple[Params, Params]:
        """What a loss with gradient `end` at the path's end feels at its start, and through the factors.

        `order` 1 leaves out everything that passes through inner gradients (FoMAML).
        """
        given = lr_multipliers or {}
        felt = dict(end)
        memory = {n: torch.zeros_like(v) for n, v in self.optimiser.init(self.adapted(end)).items()}
        rates = {name: torch.zeros_like(value) for name, value in given.items()}
        for step in reversed(range(len(path.steps))):
            before = path.steps[step]
            through, memory, learned = self.step_back(before, self.adapted(felt), memory, given, step)
            rates = {name: value + learned[name] for name, value in rates.items()}
            if order == 2:
                product = hessian_product(objective, before.params, before.batch, through)
                felt = {name: value + product[name] for name, value in felt.items()}
            else:
                memory = {name: torch.zeros_like(value) for name, value in memory.items()}
        return felt, rates

    def step_back(
        self, before: Before, felt: Params, memory: Memory, lr_multipliers: Params, step: int
    ) -> tuple[Params, Memory, Params]:
        """What a loss feels before a step, given what it feels after: through gradient, memory and factors."""
        gradient, remembered, rates = sources = [
            leaves_of(some) for some in (before.gradient, before.memory, lr_multipliers)
        ]
        flat = [value for some in sources for value in some.values()]
        params, after, _ = self.moved(self.adapted(before.params), gradient, remembered, rates, step)
        outputs = [*params.values(), *after.values()]
        weights = [*felt.values(), *(memory[name] for name in after)]
        parts = iter(torch.autograd.grad(outputs, flat, weights, materialize_grads=True))
        through, earlier, learned = ({name: next(parts) for name in some} for some in sources)
        return through, earlier, learned


def leaves_of(params: Params) -> Params:
    """Detached tensors that ask for their gradient."""
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def fanned(params: Params, owner: Int[Tensor, " U"]) -> Params:
    """Each unit's copy of its meta-learner's params."""
    return {name: value.detach().index_select(0, owner.to(value.device)) for name, value in params.items()}


def gathered(units: Params, owner: Int[Tensor, " U"], copies: int) -> Params:
    """The mean over each meta-learner's units."""
    return {name: owner_mean(value, owner, copies) for name, value in units.items()}


def owner_mean(value: Float[Tensor, "U *s"], owner: Int[Tensor, " U"], copies: int) -> Float[Tensor, "C *s"]:
    """The mean of one tensor over each meta-learner's units."""
    where = owner.to(value.device)
    total = value.new_zeros(copies, *value.shape[1:]).index_add(0, where, value)
    count = torch.bincount(where, minlength=copies).to(value.dtype)
    return total / count.view(-1, *[1] * (value.dim() - 1))


def followed(
    state: State, gradient: Params, info: Info, optimiser: Optimiser, clip: float | None
) -> tuple[State, Info]:
    """One step of the outer optimiser along a (pseudo-)gradient, clipped to norm `clip` copy by copy."""
    gradient, norm = clipped(gradient, clip)
    params, memory = optimiser.update(gradient, state.memory, state.params, state.step)
    return State(params, memory, state.step + 1), {**info, "gradient_norm": norm}


def moves(path: Path, scale: float) -> Float[Tensor, " U"]:
    """How far the inner steps really moved each unit: root mean square over entries, in units of the scale.

    Taken from the params, not from the displacement: what rounding swallowed did not move.
    """
    gaps = [(path.end[name] - path.start[name]).flatten(1) for name in path.displacement]
    return torch.cat(gaps, dim=1).square().mean(1).sqrt() / scale


def check_moved(move: Float[Tensor, " U"], optimiser: InnerOptimiser) -> None:
    """Raise TrainingError when inner steps move a unit by next to nothing: the meta-gradient would be a plain one."""
    if bool((move > NO_MOVE).all()):
        return
    still = int((move <= NO_MOVE).sum())
    raise TrainingError(
        f"the inner steps moved {still} of {len(move)} units by at most {NO_MOVE:g} embedding scales (the least: "
        f"{float(move.min()):.1e}), so nothing is adapted: {optimiser} does nothing. Inner rates are in units of the "
        "embedding scale; the published 3e-5 is such a no-op (raise inner_rate)"
    )

"""Reptile (Nichol, Achiam, Schulman 2018): the params follow where inner training leads, without any query.

The pseudo-gradient is minus the inner displacement over the inner step's unit, averaged over the units of the
meta-batch: for inner SGD the sum of the K gradients met on the way, so that one inner step is plain SGD. Cost: K engine
calls and K backward passes, whatever the number of units.
"""

from dataclasses import dataclass

from promptprior.notation import Params
from promptprior.objectives.objective import Objective, copies_of
from promptprior.rules.inner import Inner, check_moved, fanned, followed, gathered, moves, owner_mean
from promptprior.rules.optimiser import Optimiser
from promptprior.rules.rule import Info, State
from promptprior.tasks.sampling.meta_draws import MetaBatch


@dataclass(frozen=True)
class Reptile:
    """One step of the outer optimiser along the displacement. `clip`: the largest pseudo-gradient norm of a copy."""

    optimiser: Optimiser
    inner: Inner
    clip: float | None = None

    def init(self, params: Params) -> State:
        """Nothing remembered yet."""
        return State(params, self.optimiser.init(params))

    def step(self, state: State, batch: MetaBatch, objective: Objective) -> tuple[State, Info]:
        """One meta-update. "loss" is met before the first inner step, "adapted_loss" before the last.

        Raises TrainingError when the first meta-update's inner steps move nothing.
        """
        copies = copies_of(state.params)
        path = self.inner.path(objective, fanned(state.params, batch.owner), batch.inner)
        move = moves(path, self.inner.optimiser.scale)
        if state.step == 0:
            check_moved(move, self.inner.optimiser)
        gradient = self.whole(gathered(path.displacement, batch.owner, copies), state.params)
        units = {"loss": path.losses[0], "adapted_loss": path.losses[-1], "moved": move}
        info = {name: owner_mean(value, batch.owner, copies) for name, value in units.items()}
        return followed(state, gradient, info, self.optimiser, self.clip)

    def whole(self, displacement: Params, params: Params) -> Params:
        """A displacement for every name: zero where nothing was adapted."""
        return {name: displacement.get(name, value.new_zeros(value.shape)) for name, value in params.items()}

"""Reptile (Nichol, Achiam, Schulman 2018): the params follow where inner training leads, without any query.

The pseudo-gradient is minus the inner displacement over the inner step's unit, averaged over the units of the
meta-batch. For inner SGD it is the sum of the K gradients met on the way, so that one inner step is plain SGD. Cost: K
engine calls and K backward passes, whatever the number of units.
"""

from dataclasses import dataclass

from promptprior.objectives.objective import Objective, copies_of
from promptprior.rules.inner import Inner, broadcast_to_units, mean_over_units
from promptprior.rules.optimiser import OptimiserRule, optimiser_step
from promptprior.rules.rule import Info, State
from promptprior.tasks.sampling.meta_draws import MetaBatch


@dataclass(frozen=True)
class Reptile(OptimiserRule):
    """One step of the outer optimiser along the displacement. `clip`: the largest pseudo-gradient norm of a copy."""

    inner: Inner
    clip: float | None = None

    def step(self, state: State, batch: MetaBatch, objective: Objective) -> tuple[State, Info]:
        """One meta-update. "loss" is met before the first inner step, "adapted_loss" before the last.

        Raises TrainingError when the first meta-update's inner steps move nothing.
        """
        copies = copies_of(state.params)
        trajectory = self.inner.run(objective, broadcast_to_units(state.params, batch.owner), batch.inner)
        moved = self.inner.distance(trajectory, check=state.step == 0)
        units = {"loss": trajectory.losses[0], "adapted_loss": trajectory.losses[-1], "moved": moved}
        displacement = mean_over_units(trajectory.displacement, batch.owner, copies)
        # what no inner step adapts has no displacement and stays
        gradient = {name: displacement.get(name, value.new_zeros(value.shape)) for name, value in state.params.items()}
        return optimiser_step(self.optimiser, self.clip, state, gradient, mean_over_units(units, batch.owner, copies))

"""An objective with a teacher for every task: the student also predicts what its task's own prompt would.

    loss = CE + strength (KL(teacher || student) + mean squared difference of final states)      Wang et al. 2023, MPT

All three are means over a row's target tokens. A teacher is a frozen prompt read by the same backbone.
"""

from dataclasses import dataclass

import torch

from promptprior.backbone.kernels.lm_head import row_means
from promptprior.errors import SpecError
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True, eq=False)
class Distilled(PromptObjective):
    """`teachers[k]` is the prompt that the texts of task k are compared under; it gets no gradient."""

    teachers: Float[Tensor, "K L D"]
    strength: float

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        """Each row's loss with its distance from the teacher, in nats per token (and squared units of final states).

        Raises SpecError for a parameterisation that hides tokens: final states are read without a mask.
        """
        backbone, prompts, read, hidden = self.reading(params, batch)
        if hidden is not None:
            raise SpecError(
                f"parameterisation {self.parameterisation.name!r} hides prompt tokens; distillation (MPT) cannot: use "
                "one that hides none, or a method without teachers"
            )
        with torch.no_grad():  # first: it keeps nothing, so that memory peaks with the student alone
            taught = self.backbone.target_states(self.teachers, batch.reading(batch.task_index))  # [V, D]
        states = backbone.target_states(prompts, read)  # [V, D], V target tokens of all rows
        divergence = backbone.divergences(states, taught, batch)  # [R]
        wide = torch.promote_types(states.dtype, torch.float32)
        squares = (states.to(wide) - taught.to(wide)).square().mean(-1)  # [V]
        difference = divergence + row_means(squares, batch.target_lengths)  # [R]
        return backbone.state_losses(states, batch) + self.strength * difference

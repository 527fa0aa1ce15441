"""The parameterisation `decomposed`: one shared matrix times a matrix of rank one for each task.

Wang et al. 2023 (MPT): prompt_t = shared o (u_t v_t^T), o element-wise. BMTPT's multi-target variant is read as the
same: that is our inference. u and v start from ones, so that every task starts from the shared prompt; PEFT starts
them near zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from promptprior.errors import ArtifactError
from promptprior.notation import Float, Int, Params, Tensor
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class Decomposed:
    """params: "shared" Float[C, L, D], "u" Float[C, K, L] and "v" Float[C, K, D], for `tasks` = K tasks. A text of copy
    c and task t reads prompt c * K + t."""

    length: int
    width: int
    tasks: int
    name: str = "decomposed"

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "P L D"], Int[Tensor, " X"]]:
        """The prompts of every task of every copy."""
        return self.of_tasks(params).flatten(0, 1), batch.copy_index * self.tasks + batch.task_index

    def of_tasks(self, params: Params) -> Float[Tensor, "C K L D"]:
        """Each task's prompt, shared o (u v^T)."""
        return params["shared"][:, None] * params["u"][..., None] * params["v"][:, :, None, :]

    def fold(self, params: Params) -> Params:
        """The prompt of the one task, as params of `Direct`. Raises ArtifactError where there are several tasks."""
        if self.tasks != 1:
            raise ArtifactError(
                f"a decomposed prompt of {self.tasks} tasks is no single prompt: adapt it to one target"
            )
        return {"prompt": self.of_tasks(params)[:, 0]}

    def init(self, shared: Float[Tensor, "C L D"]) -> Params:
        """Params where every task's prompt is the shared prompt of its copy."""
        copies = len(shared)
        return {
            "shared": shared,
            "u": shared.new_ones(copies, self.tasks, self.length),
            "v": shared.new_ones(copies, self.tasks, self.width),
        }


def lr_multipliers_of(rate: float, low_rank_rate: float, scale: float) -> Mapping[str, float]:
    """Multipliers that make u and v move by `low_rank_rate` a step, while shared moves by `rate` embedding scales.

    u and v are ratios near one, so that the embedding scale means nothing to them. MPT's published pair is 0.3 and 0.4,
    both absolute, on T5.
    """
    return {"u": low_rank_rate / (rate * scale), "v": low_rank_rate / (rate * scale)}

"""Whether source tasks pull a prompt the same way: cosines of their gradients, and weights that follow from them."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import Objective, loss_and_gradient
from promptprior.rules.stein_kernels import flat
from promptprior.tasks.sampling.batch import Batch

LEAST = 0.1  # of the weight of a task in full agreement: no task is dropped


def task_cosines(
    objective: Objective, params: Params, batches: Iterable[Batch], tasks: int
) -> Float[Tensor, "tasks tasks"]:
    """Cosines of the mean gradients of every two tasks at one copy of the parameters; 0 for tasks that no batch holds.

    Every task reads a copy of its own, so that one engine call a batch gives all gradients.
    """
    copies = {name: value.repeat_interleave(tasks, dim=0) for name, value in params.items()}
    gradients = []
    for batch in batches:
        by_task = replace(batch, copy_index=batch.task_index, prompt_index=batch.task_index)
        gradients.append(flat(loss_and_gradient(objective, copies, by_task)[1]))  # [tasks, n]
    mean = torch.stack(gradients).mean(0)
    return torch.cosine_similarity(mean[:, None], mean[None], dim=2)


def agreement_weights(cosines: Float[Tensor, "tasks tasks"]) -> Float[Tensor, " tasks"]:
    """Weights of mean one: each task's mean cosine with the others, at least `LEAST`. Ours; BMTPT has none."""
    others = len(cosines) - 1
    if others == 0:
        return cosines.new_ones(1)
    agreement = ((cosines.sum(1) - cosines.diagonal()) / others).clamp(min=LEAST)
    return agreement / agreement.mean()

"""How the particles of a posterior lie, and whether their mean is as good as they are: what a BMTPT prior says."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from promptprior.evaluate import dev_scores, make_eval_set
from promptprior.methods.run_context import Episode, RunContext
from promptprior.methods.shared.gradient_conflict import task_cosines
from promptprior.methods.shared.particles import deviation, geometry, weights
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import Objective, PromptObjective, copy_losses, mean_weights
from promptprior.rules.svgd import Svgd, reweighted
from promptprior.tasks.sampling.batch import Batch
from promptprior.tasks.sampling.draws import StratifiedDraws

HELD_OUT_STEPS = range(10**9, 10**9 + 8)  # steps whose batches no training reaches


def held_out_batches(draws: StratifiedDraws) -> list[Batch]:
    """A few batches of the sources that no training step sees."""
    return [draws.batch(step) for step in HELD_OUT_STEPS]


def particle_report(
    objective: Objective, particles: Float[Tensor, "M L D"], draws: StratifiedDraws, rule: Svgd
) -> dict[str, object]:
    """The loss of every particle and of their mean, how the particles lie, and how the sources' gradients agree."""
    mean = particles.mean(0, keepdim=True)
    batches = held_out_batches(draws)
    losses = source_losses(objective, {"prompt": torch.cat([particles, mean])}, batches, rule.task_weights)
    weight = weights(losses[:-1], rule.count)
    return {
        "particle_loss": losses[:-1].tolist(),
        "mean_loss": float(losses[-1]),
        "effective_particles": float(1 / weight.square().sum()),
        "geometry": geometry(particles, rule.scale),
        "gradient_cosines": task_cosines(objective, {"prompt": mean}, batches, len(draws.pools)).tolist(),
    }


def particle_spread(stages: Sequence[Params], scale: float, prior_width: float) -> dict[str, float]:
    """How far an entry differs between particles (standard deviation, in embedding scales), beside the prior's width.

    Stages are the start, what SVGD left and, if there is one, an ensemble of independent chains.
    """
    deviations = [deviation(params["prompt"]) / scale for params in stages]
    return {**dict(zip(("start", "particles", "ensemble"), deviations, strict=False)), "prior": prior_width}


@torch.no_grad()
def source_losses(
    objective: Objective, params: Params, batches: Sequence[Batch], task_weights: Sequence[float] | None
) -> Float[Tensor, " C"]:
    """The mean loss of every copy on the same batches, in nats per token."""
    first = next(iter(params.values()))
    copies, total = len(first), torch.zeros(len(first), device=first.device)
    for batch in batches:
        tiled = reweighted(batch, task_weights).tile(copies)
        for piece in objective.split(params, replace(tiled, weight=mean_weights(tiled, copies))):
            total += copy_losses(objective.losses(params, piece), piece.weight, piece, copies)
    return (total / len(batches)).cpu()


def dev_losses(
    context: RunContext, particles: Float[Tensor, "E M L D"], episodes: Sequence[Episode]
) -> Float[Tensor, "E M"]:
    """The mean NLL of each episode's dev shots under each particle, before adaptation."""
    objective = PromptObjective(context.backbone, context.direct())
    count = particles.shape[1]
    requests = [
        replace(make_eval_set(objective, e.task, e.shots.dev), copy=place * count + m)
        for place, e in enumerate(episodes)
        for m in range(count)
    ]
    _, nll = dev_scores(objective, requests, {"prompt": particles.flatten(0, 1)})
    return nll.reshape(len(episodes), count)

"""How the particles of a posterior lie, and whether their mean is as good as they are: what a BMTPT prior says."""

from dataclasses import replace

import torch

from promptprior.methods.shared.gradient_conflict import task_cosines
from promptprior.methods.shared.particles import geometry, weights
from promptprior.notation import Float, Tensor
from promptprior.objectives.objective import Objective, copy_losses, mean_weights
from promptprior.rules.svgd import Svgd, reweighted
from promptprior.tasks.sampling.draws import StratifiedDraws

HELD_OUT_STEPS = range(10**9, 10**9 + 8)  # steps whose batches no training reaches


def particle_report(
    objective: Objective, particles: Float[Tensor, "M L D"], draws: StratifiedDraws, rule: Svgd
) -> dict[str, object]:
    """The loss of every particle and of their mean, how the particles lie, and how the sources' gradients agree."""
    mean = particles.mean(0, keepdim=True)
    batches = [draws.batch(step) for step in HELD_OUT_STEPS]
    params, copies = {"prompt": torch.cat([particles, mean])}, len(particles) + 1
    total = torch.zeros(copies, device=particles.device)
    with torch.no_grad():
        for batch in batches:
            tiled = reweighted(batch, rule.task_weights).tile(copies)
            for piece in objective.split(params, replace(tiled, weight=mean_weights(tiled, copies))):
                total += copy_losses(objective.losses(params, piece), piece.weight, piece, copies)
    losses = (total / len(batches)).cpu()  # nats per token
    weight = weights(losses[:-1], rule.count)
    return {
        "particle_loss": losses[:-1].tolist(),
        "mean_loss": float(losses[-1]),
        "effective_particles": float(1 / weight.square().sum()),
        "geometry": geometry(particles, rule.scale),
        "gradient_cosines": task_cosines(objective, {"prompt": mean}, batches, len(draws.pools)).tolist(),
    }

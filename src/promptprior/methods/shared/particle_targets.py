"""Where targets start from the particles of a posterior: alone, or after all targets of a group trained together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.evaluate import dev_scores, make_eval_set
from promptprior.methods.run_context import Episode, InitialParams, RunContext
from promptprior.methods.shared.joint_targets import target_groups, train_jointly
from promptprior.methods.shared.particles import GaussianPenalty, StartKind, start
from promptprior.notation import Float, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.decomposed import Decomposed, lr_multipliers_of
from promptprior.rules.optimiser import stage_rate
from promptprior.tasks.sampling.draws import generator


def target_starts(
    context: RunContext,
    kind: StartKind,
    priors: Sequence[Prior],
    particles: Float[Tensor, "E M L D"],
    episodes: Sequence[Episode],
) -> Float[Tensor, "E L D"]:
    """The aggregate of its prior's particles that each episode starts from."""
    if kind == "best":  # the mean NLL of each episode's dev shots under each particle, before adaptation
        objective = PromptObjective(context.backbone, context.direct())
        count = particles.shape[1]
        requests = [
            replace(make_eval_set(objective, e.task, e.shots.dev), copy=place * count + m)
            for place, e in enumerate(episodes)
            for m in range(count)
        ]
        _, nll = dev_scores(objective, requests, {"prompt": particles.flatten(0, 1)})
        losses = nll.reshape(len(episodes), count)  # [E, M]
    else:
        losses = torch.tensor([cast(list[float], p.header.diagnostics["particle_loss"]) for p in priors])
    counts = [cast(float, p.header.diagnostics["count"]) for p in priors]
    starts = [
        start(own, kind, loss, count, generator("sampled", e.seed, e.task.name))
        for own, loss, count, e in zip(particles, losses, counts, episodes, strict=True)
    ]
    return torch.stack(starts)


def joint_starts(
    context: RunContext,
    recipe: Any,
    starts: Float[Tensor, "E L D"],
    priors: Sequence[Prior],
    episodes: Sequence[Episode],
    width: float | None,
) -> Float[Tensor, "E L D"]:
    """The starts after all targets of a group have trained one decomposed prompt together for `recipe.joint_steps`.

    A prior of this width (in embedding scales; None for none) pulls the part that a group shares back to its start.
    """
    context.settings.require_tokens(f"joint training of targets (option joint-steps of {recipe.name})")
    groups, scale = target_groups(priors, episodes), context.backbone.scale
    stage = context.settings.target
    rate = stage_rate(stage, stage.learning_rates[:1], scale).base[0]
    form = Decomposed(context.settings.length, context.backbone.width, max(map(len, groups)))
    shared = torch.stack([starts[members].mean(0) for members in groups])  # [G, L, D]
    pull = None
    if width is not None:
        shots = torch.tensor([sum(len(episodes[e].shots.train) for e in group) for group in groups]).to(shared)
        pull = GaussianPenalty(shared, 1 / (2 * (width * scale) ** 2 * shots), "shared")
    initial = InitialParams(form, form.init(shared), lr_multipliers_of(rate, recipe.low_rank_rate, scale))
    prompts = form.of_tasks(train_jointly(context, recipe, episodes, groups, initial, pull))  # [G, K, L, D]
    after = starts.clone()
    for copy, members in enumerate(groups):
        after[members] = prompts[copy, : len(members)]
    return after

"""Several targets trained together before each goes on alone: the multi-target variants of papers.

Targets of one prior, k and seed are a group (with folds, of one fold: what another fold learns from is not shown). A
group is one copy of the parameters, and its targets are that copy's tasks; so any parameterisation that tells tasks
apart can share some of its tensors within a group.
"""

from collections.abc import Sequence
from dataclasses import replace

from promptprior.artifacts.artifact import Prior
from promptprior.methods.contract import Recipe
from promptprior.methods.run_context import Episode, InitialParams, RunContext
from promptprior.notation import Params
from promptprior.rules.descent import Penalty
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool


def prior_index(priors: Sequence[Prior]) -> list[int]:
    """Which of the distinct priors each one is, numbered in order of first appearance."""
    distinct: dict[int, int] = {}
    return [distinct.setdefault(id(prior), len(distinct)) for prior in priors]


def target_groups(priors: Sequence[Prior], episodes: Sequence[Episode]) -> list[list[int]]:
    """The places of episodes of one prior, k, seed and fold, group by group."""
    groups: dict[tuple[int, int, int, int], list[int]] = {}
    for place, (prior, episode) in enumerate(zip(prior_index(priors), episodes, strict=True)):
        groups.setdefault((prior, episode.k, episode.seed, episode.fold), []).append(place)
    return list(groups.values())


def train_jointly(
    context: RunContext,
    recipe: Recipe,
    episodes: Sequence[Episode],
    groups: Sequence[Sequence[int]],
    initial: InitialParams,
    penalty: Penalty | None = None,
) -> Params:
    """The last params after `recipe.joint_steps` steps of descent, one copy per group, each target on its own shots."""
    stage = replace(context.settings.target, steps=recipe.joint_steps)  # type: ignore[attr-defined]  # who calls has it
    members = [(copy, task, episodes[e]) for copy, group in enumerate(groups) for task, e in enumerate(group)]
    pools = [Pool(context.tokens(e.task, e.shots.train), task, copy) for copy, task, e in members]
    draws = EpisodeDraws(pools, stage.batch_size, [e.seed for _, _, e in members])
    key = context.key(recipe, "joint", *(e.key for _, _, e in members))
    return context.train(context.descent(key, stage, initial, draws, penalty), "joint").last

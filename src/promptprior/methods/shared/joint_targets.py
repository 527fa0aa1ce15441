"""Several targets trained together, before each goes on alone: the multi-target variants of papers.

Targets of one prior, k and seed are a group. A group is one copy of the parameters, its targets are the copy's tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from promptprior.backbone import training_tokens
from promptprior.methods.method import Episode, Method, RunContext
from promptprior.notation import Params
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.parameterisation import Parameterisation
from promptprior.rules.descent import Penalty
from promptprior.tasks.sampling.draws import EpisodeDraws, Pool
from promptprior.train import Run


@dataclass(frozen=True)
class Joint:
    """Episodes in groups, and how long they train together; `lr_multipliers` are those of learning rates, by parameter."""

    context: RunContext
    episodes: Sequence[Episode]
    groups: Sequence[Sequence[int]]
    steps: int
    lr_multipliers: Mapping[str, float]

    @property
    def targets(self) -> int:
        """How many the largest group has."""
        return max(map(len, self.groups))

    @property
    def members(self) -> list[tuple[int, int, Episode]]:
        """Every episode with its copy (group) and its task (place in the group)."""
        return [
            (copy, task, self.episodes[e]) for copy, group in enumerate(self.groups) for task, e in enumerate(group)
        ]

    def run(self, method: Method, form: Parameterisation, params: Params, penalty: Penalty | None = None) -> Run:
        """Descent of all groups from these params, each target on its own shots."""
        stage = replace(self.context.settings.target, steps=self.steps)
        key = self.context.key(method, "joint", *(e.key for _, _, e in self.members))
        pools = [
            Pool(training_tokens(self.context.backbone, e.task, e.shots.train), task, copy)
            for copy, task, e in self.members
        ]
        draws = EpisodeDraws(pools, stage.batch_size, [e.seed for _, _, e in self.members])
        objective = PromptObjective(self.context.backbone, form)
        return self.context.descent(key, stage, objective, params, draws, self.lr_multipliers, penalty)


def grouped(which: Sequence[int], episodes: Sequence[Episode]) -> list[list[int]]:
    """Episodes of one prior, k and seed, in order."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for place, (prior, episode) in enumerate(zip(which, episodes, strict=True)):
        groups.setdefault((prior, episode.k, episode.seed), []).append(place)
    return list(groups.values())


def places_of(priors: Sequence[object]) -> list[int]:
    """Which of the distinct priors each one is, in order of first sight."""
    distinct: dict[int, int] = {}
    return [distinct.setdefault(id(prior), len(distinct)) for prior in priors]

"""The negative-transfer guard: a prior is kept only where the dev shots speak for it.

Its prompt stands against scratch (prompt tuning on the same budget) and against no prompt, on the episode's dev shots
and nothing else. The better score wins, at equal scores the lower NLL, and what is equal in both stays with the prior.
Dev shots are few, so the gap comes with an interval; and they chose steps and rates of the two trained candidates,
which flatters those beside no prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from promptprior.adapt import adapt
from promptprior.adaptation.adapted import Adapted
from promptprior.adaptation.choose import Candidate, Gap, held_out_of, judged, paired_gap
from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone
from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.fit import RunControl
from promptprior.methods import Episode, Recipe, make_method

RIVALS = ("zero_shot", "prompt_tuning")  # of two that are equal the first, which costs nothing, is taken


@dataclass(frozen=True)
class Guarded:
    """An episode's verdict. `adapted` is the chosen prompt, whose header says so too; candidate 0 is the prior's.

    `gap` is between what was chosen and the best alternative: the prior where it fell back, else the best rival.
    """

    adapted: Adapted
    candidates: tuple[Candidate, ...]
    gap: Gap

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> "Guarded":
        """The best candidate on dev, the first of several that are equal; its header says why."""
        prior, *rivals = candidates
        chosen = max(candidates, key=lambda c: c.rank)
        gap = paired_gap(chosen, max(rivals, key=lambda c: c.rank) if chosen is prior else prior)
        found, header = cls(chosen.adapted, tuple(candidates), gap), chosen.adapted.prompt.header
        verdict = {
            "chosen": chosen.method,
            "prior": prior.method,
            "fell_back": chosen is not prior,
            "says": found.says,
            "gap": gap.to_mapping(),
            "dev": {c.method: {"score": c.score, "nll": c.nll} for c in candidates},
        }
        prompt = replace(chosen.adapted.prompt, header=replace(header, scores={**header.scores, "guard": verdict}))
        return replace(found, adapted=replace(chosen.adapted, prompt=prompt))

    @property
    def kept(self) -> bool:
        """Whether the prior's prompt was chosen."""
        return self.adapted.prompt.header.method == self.candidates[0].method

    @property
    def says(self) -> str:
        """The verdict in a sentence."""
        prior, chosen = self.candidates[0], self.adapted.prompt.header.method
        verb = "kept the prior" if self.kept else f"fell back to {chosen}, away from the prior"
        standing = ", ".join(
            f"{c.method} {'' if c.score is None else f'{c.score:.3f}, '}NLL {c.nll:.3f}" for c in self.candidates
        )
        return f"guard: {verb} ({prior.method}). On {len(prior.each_nll)} dev examples: {standing}. {self.gap.says}"


def guarded(
    method: Recipe,
    episodes: Sequence[Episode],
    backbone: Backbone,
    priors: Sequence[Prior] | Prior | None,
    settings: Settings | None = None,
    control: RunControl | None = None,
) -> list[Guarded]:
    """Adapt from a prior, from scratch and not at all, and keep for each episode what its dev shots prefer.

    Takes what `adapt` takes and costs about twice as much. Raises SpecError for a method that has no prior.
    """
    if not method.needs_sources:
        raise SpecError(f"method {method.name!r} starts from no prior: there is nothing to guard (--guard, --method)")
    control, per_method = control or RunControl(), []
    watch = control.watch
    for rival in (method, *map(make_method, RIVALS)):
        own = control.inside(rival.name)
        if watch is not None:  # who watches is told whose stage it is
            own = replace(own, watch=lambda stage, name=rival.name: watch(f"{name} {stage}"))  # type: ignore[misc]
        per_method.append(adapt(rival, episodes, backbone, priors, settings, own))
    return [
        Guarded.of([judged(a, held_out_of(backbone, a)) for a in rivals]) for rivals in zip(*per_method, strict=True)
    ]

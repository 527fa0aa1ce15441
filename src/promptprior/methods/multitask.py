"""One prompt trained on the mixture of all sources, then adapted: the multi-task baseline (MTL in Qin et al. 2023).

Vu et al. 2022 call the same start "SPoT on a mixture". Parameterisation direct, rule descent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from promptprior.methods.method import Beginning, Episode, Lab, Learned, spent, stacked
from promptprior.prompts.artifact import Prior
from promptprior.prompts.parameterisation import Direct
from promptprior.rules.objective import PromptObjective
from promptprior.settings import setting
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class Multitask:
    """The shared prompt of all sources."""

    times: int = setting(1, "factor on the source steps", quiet=True)
    name: str = "multitask"
    needs_sources: bool = True
    uses_shots: bool = True

    def learn(self, lab: Lab, sources: Sequence[Task], seed: int) -> Learned:
        """Descend on batches of mixed sources."""
        form = Direct(lab.settings.length, lab.backbone.width)
        stage = replace(lab.settings.source, steps=lab.settings.source.steps * self.times)
        key = lab.key(self, seed, *(t.fingerprint for t in sources))
        params = stacked([lab.start(seed, "multitask")])
        run = lab.descent(key, stage, PromptObjective(lab.backbone, form), params, lab.mixture(sources, seed))
        done = lab.train(run, "source")
        return Learned(form, done.params, {"source_loss": loss_curve(done.history)}, **spent(done))  # type: ignore[arg-type]

    def begin(self, lab: Lab, priors: Sequence[Prior], episodes: Sequence[Episode]) -> Beginning:
        """Every episode starts from its prior's one prompt."""
        device = lab.backbone.frozen.device
        return Beginning(
            Direct(lab.settings.length, lab.backbone.width),
            stacked([prior.params["prompt"][0].to(device) for prior in priors]),
        )


@dataclass(frozen=True)
class MultitaskLong(Multitask):
    """Control of `bmtpt`: one prompt with as many source updates, and tokens, as its five particles have together."""

    times: int = setting(5, "factor on the source steps")
    name: str = "multitask_long"


def loss_curve(history: Sequence[dict[str, object]], points: int = 20) -> list[object]:
    """The mean source loss at evenly spaced steps, for the artifact's diagnostics."""
    losses = [line["loss"] for line in history if "loss" in line]
    stride = max(1, len(losses) // points)
    return losses[::stride]

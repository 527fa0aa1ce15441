"""Residual prompt tuning: a prompt plus what a small network makes of it, trained together from scratch.

Razdaibiedina, Mao, Hou, Khabsa, Lewis, Almahairi, Ba 2023 (Findings of ACL, arXiv 2305.03937); docs/rivals.md compares
their released code with ours. Parameterisation residual, rule descent, no prior. `residual_as_released` has their
code's settings: bottleneck 800, one network, LayerNorm's gain 1, one rate for all (0.3 absolute, AdamW, decay 1e-5,
batch 8, length 10). `residual_prompt_tuning` is ours: the gain starts at 0, so that training starts from the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.config.training import setting
from promptprior.errors import SpecError
from promptprior.methods.method import AdaptationInit, Episode, FitResult, RunContext
from promptprior.notation import Params
from promptprior.parameterisations.residual import NETWORK, Residual, init_residual_network
from promptprior.tasks.sampling.draws import generator
from promptprior.tasks.task import Task


@dataclass(frozen=True)
class ResidualPromptTuning:
    """A fresh prompt and network for every target; the result is a plain prompt."""

    bottleneck: int = setting(100, "width of the network's bottleneck")
    separate: bool = setting(False, "a network for each token of the prompt, instead of one for all")
    gain: float = setting(0.0, "where LayerNorm's gain starts, in embedding scales; 0: at the prompt itself")
    network_rate: float | None = setting(
        0.03, "rate of the network, times the prompt's in embedding scales; none: the prompt's own rate"
    )
    absolute: bool = setting(
        False, "the prompt as it is into the network, and a gain in absolute numbers (as released)"
    )
    name: str = "residual_prompt_tuning"
    needs_sources: bool = False
    uses_shots: bool = True

    def __post_init__(self) -> None:
        if self.bottleneck < 1 or (self.network_rate is not None and self.network_rate < 0):
            raise SpecError(
                f"bottleneck {self.bottleneck}, network rate {self.network_rate} (--bottleneck, --network-rate): "
                "expected at least 1, and no negative rate"
            )

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Nothing to learn. Raises SpecError."""
        raise SpecError(f"method {self.name!r} has no prior to fit; use it with adapt or compare")

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Prompt tuning's start for every episode, and a network of its own."""
        form = Residual(
            context.settings.length, context.backbone.width, 1.0 if self.absolute else context.backbone.scale
        )
        starts = [self.started(context, episode) for episode in episodes]
        params = {name: torch.stack([one[name] for one in starts]) for name in starts[0]}
        rate = 1.0 if self.network_rate is None else self.network_rate / context.backbone.scale
        return AdaptationInit(form, params, lr_multipliers=dict.fromkeys(NETWORK, rate))

    def started(self, context: RunContext, episode: Episode) -> Params:
        """One episode's parameters, without a copies axis."""
        prompt = context.start(episode.seed, episode.task.name, labels=episode.task.label_names)
        networks = context.settings.length if self.separate else 1
        gain = self.gain * (1.0 if self.absolute else context.backbone.scale)
        g = generator("residual", episode.seed, episode.task.name)
        network = init_residual_network(context.backbone.width, self.bottleneck, networks, gain, g)
        return {"prompt": prompt, **{name: value.to(prompt) for name, value in network.items()}}


@dataclass(frozen=True)
class ResidualAsReleased(ResidualPromptTuning):
    """The released code's network: bottleneck 800, gain 1, one rate for everything."""

    bottleneck: int = setting(800, "width of the network's bottleneck")
    gain: float = setting(1.0, "where LayerNorm's gain starts")
    network_rate: float | None = setting(
        None, "rate of the network, times the prompt's in embedding scales; none: the prompt's own rate"
    )
    absolute: bool = setting(True, "the prompt as it is into the network, and a gain in absolute numbers")
    name: str = "residual_as_released"

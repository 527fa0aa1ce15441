"""What a prior keeps of how it came about: curves of about twenty steps, and losses on a few texts of each source."""

from collections.abc import Mapping, Sequence

import torch

from promptprior.backbone import Backbone
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import collate
from promptprior.tasks.sampling.draws import MixtureDraws

SAMPLE = 16  # texts of each source whose loss is taken

FORCES = ("repulsion_ratio", "kernel", "distance", "spread")
"""What SVGD logs: whether there is any repulsion, and whether particles stay apart (rules.svgd)."""


def curve(history: Sequence[Mapping[str, object]], name: str = "loss", points: int = 20) -> list[object]:
    """What a run logged under a name for every copy, for a prior's diagnostics: "loss" is in nats per token."""
    values = [line[name] for line in history if name in line]
    return values[:: max(1, len(values) // points)]


@torch.no_grad()
def sample_losses(backbone: Backbone, prompts: Float[Tensor, "K L D"], draws: MixtureDraws) -> list[float]:
    """The mean loss of every source's prompt on a few of its texts, in nats per token."""
    sample = [pool.items[:SAMPLE] for pool in draws.pools]
    batch = collate([item for items in sample for item in items], [k for k, items in enumerate(sample) for _ in items])
    return [float(part.mean()) for part in backbone.losses(prompts, batch).split([len(items) for items in sample])]

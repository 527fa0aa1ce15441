"""What a prior keeps of how it came about: curves of about twenty steps, and losses on a few texts of each source."""

from collections.abc import Mapping, Sequence

import torch

from promptprior.backbone import Backbone
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import collate
from promptprior.tasks.sampling.draws import MixtureDraws

SAMPLE = 16  # texts of each source whose loss is taken

FORCES = ("repulsion_ratio", "kernel", "distance", "spread")  # what rules.svgd logs


def loss_curve(history: Sequence[Mapping[str, object]], points: int = 20) -> list[object]:
    """The source loss of every copy, in nats per token, for a prior's diagnostics."""
    losses = [line["loss"] for line in history if "loss" in line]
    return losses[:: max(1, len(losses) // points)]


def force_curves(history: Sequence[Mapping[str, object]], points: int = 20) -> dict[str, list[object]]:
    """What SVGD logged: whether there is any repulsion, and whether particles stay apart."""
    lines = [line for line in history if FORCES[0] in line]
    return {name: [line[name] for line in lines[:: max(1, len(lines) // points)]] for name in FORCES}


@torch.no_grad()
def sample_losses(backbone: Backbone, prompts: Float[Tensor, "K L D"], draws: MixtureDraws) -> list[float]:
    """The mean loss of every source's prompt on a few of its texts, in nats per token."""
    sample = [pool.items[:SAMPLE] for pool in draws.pools]
    batch = collate([item for items in sample for item in items], [k for k, items in enumerate(sample) for _ in items])
    return [float(part.mean()) for part in backbone.losses(prompts, batch).split([len(items) for items in sample])]

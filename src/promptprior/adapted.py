"""What adaptation gives: an episode's prompt and how it came about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptprior.artifacts.artifact import Prompt
from promptprior.cost import Cost
from promptprior.methods import Episode


@dataclass(frozen=True)
class Adapted:
    """An episode's prompt and how it came about.

    `curve` has train loss and dev score by step, `cost` is this episode's share of the run; `trainable` counts the
    numbers that adaptation learned.
    """

    prompt: Prompt
    episode: Episode
    learning_rate: float | None
    best_step: int
    dev_score: float | None
    curve: tuple[dict[str, Any], ...]
    trainable: int
    cost: Cost
    variant: Mapping[str, object] = field(default_factory=dict)

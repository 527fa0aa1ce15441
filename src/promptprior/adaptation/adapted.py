"""What adaptation gives: an episode's prompt and how it came about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptprior.adaptation.held_out import HeldOut
from promptprior.artifacts.artifact import Prompt
from promptprior.cost import Cost
from promptprior.methods import Episode


@dataclass(frozen=True)
class Adapted:
    """An episode's prompt and how it came about.

    `curve` has train loss and dev score by step, `cost` is this episode's share of the run; `trainable` counts the
    numbers that adaptation learned (candidates of a blend that answer with the same ones count them each). `dev_score`
    is the task's first metric, NLL is in nats, `cost` in seconds, rows and tokens that the backbone read. With folds
    `dev_score` is the mean over them, `curve` that of the first one with these means. `dev_error` is the score's
    standard error over examples. `out_of_fold` has every example (with one fold, and of a head without folds: every dev
    shot) as answered without having learned from it. Where two runs answer together (both_ways.py) `best_step`,
    `learning_rate` and `curve` are those of the first, all else is of both, the dev score as soon as it has been taken
    of all answers (choose.py).
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
    dev_error: float | None = None
    out_of_fold: tuple[HeldOut, ...] = ()

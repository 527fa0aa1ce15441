"""Batches of tokens, and the seeded draws that make them."""

from promptprior.tasks.sampling.batch import Batch, Tokens, collate
from promptprior.tasks.sampling.draws import (
    CROSSFIT_SEEDS,
    Draws,
    EpisodeDraws,
    MixtureDraws,
    Pool,
    Shots,
    k_shot,
    mixture_rates,
)

__all__ = [
    "CROSSFIT_SEEDS",
    "Batch",
    "Draws",
    "EpisodeDraws",
    "MixtureDraws",
    "Pool",
    "Shots",
    "Tokens",
    "collate",
    "k_shot",
    "mixture_rates",
]

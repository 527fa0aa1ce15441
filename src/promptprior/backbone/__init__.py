"""The frozen language model: the only folder that imports transformers."""

from promptprior.backbone.chunking import backing_off, own_share, own_texts
from promptprior.backbone.engine import Backbone, as_backbone, load, ranking_tokens, training_tokens
from promptprior.backbone.frozen import SMOLLM2, freeze
from promptprior.backbone.identity import BackboneCard

__all__ = [
    "SMOLLM2",
    "Backbone",
    "BackboneCard",
    "as_backbone",
    "backing_off",
    "freeze",
    "load",
    "own_share",
    "own_texts",
    "ranking_tokens",
    "training_tokens",
]

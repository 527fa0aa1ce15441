"""The frozen language model: the only folder that imports transformers."""

from promptprior.backbone.chunking import backing_off, own_share, own_texts
from promptprior.backbone.engine import Backbone, as_backbone, load, ranking_tokens, training_tokens
from promptprior.backbone.frozen import SMOLLM2, freeze
from promptprior.backbone.identity import BackboneCard
from promptprior.backbone.text_states import Pooling, Site

__all__ = [
    "SMOLLM2",
    "Backbone",
    "BackboneCard",
    "Pooling",
    "Site",
    "as_backbone",
    "backing_off",
    "freeze",
    "load",
    "own_share",
    "own_texts",
    "ranking_tokens",
    "training_tokens",
]

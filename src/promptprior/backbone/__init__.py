"""The frozen language model: the only folder that imports transformers."""

from promptprior.backbone.card import BackboneCard
from promptprior.backbone.encode import ranking_tokens, training_tokens
from promptprior.backbone.engine import Backbone, as_backbone, load
from promptprior.backbone.frozen import SMOLLM2, freeze

__all__ = ["SMOLLM2", "Backbone", "BackboneCard", "as_backbone", "freeze", "load", "ranking_tokens", "training_tokens"]

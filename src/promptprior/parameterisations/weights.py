"""The parameterisations `lora` and `own`: params are weights of the model, as references have them.

The backbone is never written to: weights take the place of the model's own for the length of one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from promptprior.backbone import Backbone
from promptprior.backbone.weight_overrides import WeightedModel, Which, lora_model, weight_route
from promptprior.errors import SpecError

HOLDS = "weights of the model, a reference that prompts are compared with"


@dataclass(frozen=True)
class LoraForm:
    """Low-rank additions to some linear modules; none named means PEFT's choice for the family."""

    rank: int
    alpha: float
    modules: Sequence[str] = field(default=())
    name: str = "lora"
    holds: ClassVar[str] = HOLDS

    def answers(self, backbone: Backbone) -> WeightedModel:
        """The model with PEFT's layers. Raises SpecError without peft, and for modules that the model does not have."""
        return lora_model(backbone, self.rank, self.alpha, self.modules)


@dataclass(frozen=True)
class OwnForm:
    """Weights that the model has: its biases, all its vectors, or all."""

    which: Which
    name: str = "own"
    holds: ClassVar[str] = HOLDS

    def answers(self, backbone: Backbone) -> WeightedModel:
        """The model itself under other biases, other vectors (biases and the scales of norms) or all other weights.
        Raises SpecError for the biases of a model without any."""
        frozen = backbone.frozen
        start = {
            name: weight.detach()
            for name, weight in frozen.model.named_parameters()
            if self.which == "all" or (weight.dim() == 1 and (self.which == "vectors" or name.endswith(".bias")))
        }
        if not start:
            raise SpecError(
                f"{frozen.card.name} ({frozen.card.architecture}) has no biases to train: use "
                "--options.bitfit.which vectors"
            )
        return WeightedModel(backbone, frozen, weight_route(frozen), start)

"""The parameterisations `lora` and `own`: params are weights of the model, as references have them.

The backbone is never written to: weights take the place of the model's own for the length of one call.
"""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from promptprior.backbone import Backbone
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.weight_overrides import WeightedModel, Which, weight_route
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
        """A shared-weight copy of the model with PEFT's LoRA layers (Hu et al. 2021) on some linear modules.

        Without `modules` PEFT's own choice for the family: queries and values where they are layers of their own.
        Raises SpecError when peft is missing, or knows no such modules.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise SpecError("the method lora needs a package: pip install 'promptprior[peft]'") from error
        named = list(self.modules)
        settings = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=named or None)
        shared = backbone.frozen.model
        model: Any = copy.deepcopy(shared, {id(tensor): tensor for tensor in (*shared.parameters(), *shared.buffers())})
        try:
            with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):  # PEFT draws what nobody reads
                inject_adapter_in_model(settings, model)
        except ValueError as error:
            raise SpecError(f"modules {', '.join(named) or 'by default'} (--options.lora.modules): {error}") from error
        frozen = Frozen(model, backbone.frozen.tokenizer, backbone.frozen.card)
        weights = {name: weight.detach() for name, weight in model.named_parameters() if ".lora_" in name}
        if other := [name for name in weights if ".lora_A." not in name and ".lora_B." not in name]:
            raise SpecError(
                f"modules (--options.lora.modules): {other[0].split('.lora_')[0]} is not linear; name linear ones"
            )
        start = {name: torch.zeros_like(weight, dtype=frozen.prompt_dtype) for name, weight in weights.items()}
        return WeightedModel(backbone, frozen, weight_route(frozen), start)


@dataclass(frozen=True)
class OwnForm:
    """Weights that the model has: its biases, or all its vectors."""

    which: Which
    name: str = "own"
    holds: ClassVar[str] = HOLDS

    def answers(self, backbone: Backbone) -> WeightedModel:
        """The model itself under other biases, or all other vectors: biases and the scales of norms. Raises SpecError
        for the biases of a model without any."""
        frozen = backbone.frozen
        start = {
            name: weight.detach()
            for name, weight in frozen.model.named_parameters()
            if weight.dim() == 1 and (self.which == "vectors" or name.endswith(".bias"))
        }
        if not start:
            raise SpecError(
                f"{frozen.card.name} ({frozen.card.architecture}) has no biases to train: use "
                "--options.bitfit.which vectors"
            )
        return WeightedModel(backbone, frozen, weight_route(frozen), start)

"""Parameters that are no prompt but weights of the trunk, for the references that prompts are compared with.

They have a leading copies axis as all params have, so the one training loop, its draws and its selection serve them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from promptprior.backbone import Backbone
from promptprior.backbone.weight_overrides import Trunk, Which, lora_trunk, own_trunk


@runtime_checkable
class WeightForm(Protocol):
    """Which weights of a trunk are params; artifacts keep its fields."""

    @property
    def name(self) -> str:
        """Its name in artifacts."""
        ...

    def trunk(self, backbone: Backbone) -> Trunk:
        """The backbone as one that is lent these weights. Raises SpecError where it has none."""
        ...


@dataclass(frozen=True)
class LoraForm:
    """Low-rank additions to some linear modules; none named means PEFT's choice for the family."""

    rank: int
    alpha: float
    modules: Sequence[str] = field(default=())
    name: str = "lora"

    def trunk(self, backbone: Backbone) -> Trunk:
        """A twin with PEFT's layers."""
        return lora_trunk(backbone, self.rank, self.alpha, self.modules)


@dataclass(frozen=True)
class OwnForm:
    """Weights that the trunk has: its biases, or all its vectors."""

    which: Which
    name: str = "own"

    def trunk(self, backbone: Backbone) -> Trunk:
        """The model itself."""
        return own_trunk(backbone, self.which)

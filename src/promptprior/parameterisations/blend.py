"""The parameterisation `blend`: several prompts of one target, whatever their forms and heads, that answer together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from promptprior.backbone import Backbone
from promptprior.errors import SpecError
from promptprior.parameterisations.parameterisation import Answers


@dataclass(frozen=True)
class Blend:
    """params: "weight" and "temperature" Float[1, M], and the params of member m, each with one more leading axis, as
    "m.name". `members` are the members' headers, as an artifact writes them (artifacts/blending.py)."""

    members: Sequence[Mapping[str, object]] = field(default=())
    name: str = "blend"
    holds: ClassVar[str] = "several prompts that answer together"

    def answers(self, backbone: Backbone) -> Answers:  # noqa: ARG002
        """None: members answer one by one (evaluate.py). Raises SpecError."""
        raise SpecError("a blend cannot be trained: adapt its members, and blend them again")

"""How parameters become prompts.

A parameterisation is a frozen value that turns params, a dict of tensors with a leading copies axis C, into
the distinct prompts a batch needs and says which prompt each text reads. It never knows which rule moves it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast, runtime_checkable

from promptprior.backbone import Backbone
from promptprior.config import to_mapping
from promptprior.errors import ArtifactError, unknown_name
from promptprior.notation import Float, Int, Params, Tensor
from promptprior.prompts.bank import Bank
from promptprior.prompts.decomposed import Decomposed
from promptprior.prompts.mixture import Mixture
from promptprior.prompts.offset import Offset
from promptprior.prompts.residual import Residual
from promptprior.prompts.weights import LoraForm, OwnForm, WeightForm
from promptprior.tasks.batch import Batch, Tokens


class Parameterisation(Protocol):
    """What an objective and an artifact need of a parameterisation."""

    @property
    def name(self) -> str:
        """Its name in artifacts."""
        ...

    @property
    def length(self) -> int:
        """L: tokens of each prompt it makes."""
        ...

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "P L D"], Int[Tensor, " X"]]:
        """The prompts a batch needs, and which one each of its texts reads."""
        ...


@runtime_checkable
class Penalised(Protocol):
    """What may be asked for a term beside the losses: a parameterisation with one of its own, and its objective."""

    def penalty(self, params: Params, batch: Batch) -> Float[Tensor, " C"] | None:
        """What training adds to each copy's mean loss on a batch, in nats; None for nothing. Exams never see it."""
        ...


@runtime_checkable
class Offsetting(Protocol):
    """A parameterisation whose prompts also add something to the embeddings of the texts that read them."""

    def offsets(self, params: Params) -> Float[Tensor, "P S D"]:
        """For each of its prompts, what is added to token 0, 1, … of a text."""
        ...


@runtime_checkable
class Diagnosable(Protocol):
    """A parameterisation that has something to say of itself."""

    def diagnose(self, params: Params, texts: Mapping[str, Sequence[Tokens]]) -> Mapping[str, object]:
        """What there is to know of one copy, given some texts of each task: plain JSON values by topic."""
        ...


@runtime_checkable
class Foldable(Protocol):
    """A parameterisation that is a plain prompt once it is trained: what made it can be dropped."""

    def fold(self, params: Params) -> Params:
        """The same prompts as the params of `Direct`."""
        ...


@dataclass(frozen=True)
class Direct:
    """One free matrix per copy: params["prompt"] is Float[C, L, D], and copy c's texts read prompt c."""

    length: int
    width: int
    name: str = "direct"

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "P L D"], Int[Tensor, " X"]]:
        """The matrices themselves."""
        return params["prompt"], batch.copy_index


Form = Parameterisation | WeightForm
"""What params are: prompts, or (in references) weights of the trunk."""

PARAMETERISATIONS: Mapping[str, type[Any]] = {
    "direct": Direct,
    "bank": Bank,
    "decomposed": Decomposed,
    "mixture": Mixture,
    "offset": Offset,
    "residual": Residual,
    "lora": LoraForm,
    "own": OwnForm,
}


def folded(form: Form, params: Params) -> tuple[Form, Params]:
    """A trained form as a plain prompt where it is no more than that; any other as it is."""
    if not isinstance(form, Foldable):
        return form, params
    plain = form.fold(params)
    return Direct(*plain["prompt"].shape[1:]), plain


def parameterisation(name: str, settings: Mapping[str, object], backbone: Backbone) -> Form:
    """The form an artifact names, reading this backbone where it reads one.

    Raises ArtifactError for one this version does not know.
    """
    if name not in PARAMETERISATIONS:
        raise ArtifactError(unknown_name("parameterisation", name, PARAMETERISATIONS))
    kind = PARAMETERISATIONS[name]
    reads = {"backbone": backbone} if any(f.name == "backbone" for f in fields(kind)) else {}
    return kind(**settings, **reads)


def plain_settings(form: Form) -> dict[str, object]:
    """What an artifact keeps to make a parameterisation again: its fields, without the backbone it reads."""
    kept = [f.name for f in fields(cast(Any, form)) if f.init and f.name != "backbone"]
    return {name: to_mapping(getattr(form, name)) for name in kept}

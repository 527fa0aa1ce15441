"""All parameterisations by the name that artifacts keep."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

from promptprior.backbone import Backbone
from promptprior.config.mapping import to_mapping
from promptprior.errors import ArtifactError, unknown_name
from promptprior.notation import Params
from promptprior.parameterisations.bank import Bank
from promptprior.parameterisations.decomposed import Decomposed
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.mixture import Mixture
from promptprior.parameterisations.offset import Offset
from promptprior.parameterisations.parameterisation import Foldable, Parameterisation
from promptprior.parameterisations.residual import Residual
from promptprior.parameterisations.weights import LoraForm, OwnForm, WeightForm

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

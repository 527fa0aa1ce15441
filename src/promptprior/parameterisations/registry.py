"""All parameterisations by the name that artifacts keep, those of other packages included.

Another package adds its own by an entry point of the group `promptprior.parameterisations` that names the dataclass:

    [project.entry-points."promptprior.parameterisations"]
    kv_prefix = "my_package.kv_prefix:KvPrefix"
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

from promptprior import plugins
from promptprior.backbone import Backbone
from promptprior.config.mapping import to_mapping
from promptprior.errors import ArtifactError, SpecError, unknown_name
from promptprior.notation import Params
from promptprior.parameterisations.bank import Bank
from promptprior.parameterisations.decomposed import Decomposed
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.mixture import Mixture
from promptprior.parameterisations.offset import Offset
from promptprior.parameterisations.parameterisation import AnsweringForm, Foldable, Parameterisation
from promptprior.parameterisations.residual import Residual
from promptprior.parameterisations.weights import LoraForm, OwnForm

Form = Parameterisation | AnsweringForm
"""What gives params their meaning: they become prompts, or they answer texts without one."""

GROUP = "promptprior.parameterisations"
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


def form_class(name: str) -> type[Any]:
    """The dataclass that is registered under a name, here or by another package.

    Raises ArtifactError for an unknown name, SpecError where a package's entry point takes a name that is in use,
    cannot be loaded or is no dataclass.
    """
    others = plugins.load_plugins(GROUP, PARAMETERISATIONS)
    if name in PARAMETERISATIONS:
        return PARAMETERISATIONS[name]
    if name not in others:
        raise ArtifactError(unknown_name("parameterisation", name, [*PARAMETERISATIONS, *others]))
    form = others[name]
    if not (isinstance(form, type) and is_dataclass(form)):
        raise SpecError(f"entry point {others.describe(name)} is {form!r}; expected a frozen dataclass")
    return form


def parameterisation(name: str, settings: Mapping[str, object], backbone: Backbone) -> Form:
    """The form that an artifact names, with the backbone at hand where it reads one. Raises as `form_class` does."""
    cls = form_class(name)
    reads = {"backbone": backbone} if any(f.name == "backbone" for f in fields(cls)) else {}
    return cls(**settings, **reads)


def plain_settings(form: Form) -> dict[str, object]:
    """What an artifact keeps to make a form again: its fields, without the backbone it reads."""
    names = [f.name for f in fields(cast(Any, form)) if f.init and f.name != "backbone"]
    return {name: to_mapping(getattr(form, name)) for name in names}


def folded(form: Form, params: Params) -> tuple[Form, Params]:
    """A trained form as a plain prompt where it is no more than that; any other as it is."""
    if not isinstance(form, Foldable):
        return form, params
    plain = form.fold(params)
    return Direct(*plain["prompt"].shape[1:]), plain

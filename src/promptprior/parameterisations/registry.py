"""All parameterisations by the name that artifacts keep, and the check of one before it is trained.

Another package adds its own by an entry point of the group `promptprior.parameterisations` that names the dataclass:

    [project.entry-points."promptprior.parameterisations"]
    kv_prefix = "my_package.kv_prefix:KvPrefix"
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import torch

from promptprior import plugins
from promptprior.backbone import Backbone
from promptprior.config.mapping import to_mapping
from promptprior.errors import ArtifactError, SpecError, unknown_name
from promptprior.notation import Params, Tensor
from promptprior.parameterisations.bank import Bank
from promptprior.parameterisations.decomposed import Decomposed
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.mixture import Mixture
from promptprior.parameterisations.offset import Offset
from promptprior.parameterisations.parameterisation import AnsweringForm, Foldable, Parameterisation
from promptprior.parameterisations.residual import Residual
from promptprior.parameterisations.weights import LoraForm, OwnForm
from promptprior.tasks.sampling.batch import Batch

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

    Raises ArtifactError for an unknown name, SpecError where a package's entry point takes a name that is in use, cannot
    be loaded or is no dataclass.
    """
    others = plugins.load(GROUP, PARAMETERISATIONS)
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


def check_form(form: Form, params: Params, batch: Batch, backbone: Backbone, copies: int) -> None:
    """Raise SpecError, naming the form, the field and what was expected, unless form and params can be trained.

    Checks that the form's name is registered (a form that folds into a plain prompt needs none), that params are
    floating-point tensors with `copies` copies, and that `prompts(params, batch)` returns ([P, L, D], [X]) for `batch`, a
    small one whose copies exist. A form that answers by itself is not asked: its answers are made once, by the run.
    """
    label = f"parameterisation {form.name!r} ({type(form).__name__})"
    if not isinstance(form, Foldable):
        try:
            registered = form_class(form.name)
        except ArtifactError as error:
            raise SpecError(f"{label}: {error}; register it as an entry point of the group {GROUP}") from error
        if registered is not type(form):
            raise SpecError(f"{label}: name: {form.name!r} is {registered.__name__}'s; expected a name of its own")

    if not isinstance(params, dict) or not params:
        raise SpecError(f"{label}: params: got {params!r}; expected a dict of tensors by name")
    for name, value in params.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise SpecError(f"{label}: params[{name!r}]: got {kind}; expected a tensor of floating-point numbers")
        if value.ndim == 0 or value.shape[0] != copies:
            raise SpecError(
                f"{label}: params[{name!r}]: got shape {list(value.shape)}; expected a leading copies axis of {copies}, "
                f"so [{copies}, ...]"
            )
    if isinstance(form, AnsweringForm):
        return

    # A copy of the form computes the probe and the meter is put back: the check must neither be part of a run's cost
    # nor leave queries in the form's cache that the run would then not have to pay for.
    meter = replace(backbone.meter)
    probed = cast(Parameterisation, replace(cast(Any, form)) if is_dataclass(form) else form)
    try:
        with torch.no_grad():
            returned: Any = probed.prompts(params, batch)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        held = ", ".join(f"{name} {list(value.shape)}" for name, value in params.items())
        raise SpecError(
            f"{label}: prompts(params, batch) fails with {type(error).__name__}: {error}; params are {held}"
        ) from error
    finally:
        vars(backbone.meter).update(vars(meter))

    if not (isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(r, Tensor) for r in returned)):
        raise SpecError(f"{label}: prompts(params, batch): got {type(returned).__name__}; expected (prompts, index)")
    prompts, index = returned
    expected = f"[P, {form.length}, {backbone.width}], P prompts of the form's length and the backbone's width"
    if prompts.ndim != 3 or not prompts.is_floating_point():
        raise SpecError(f"{label}: prompts: got {list(prompts.shape)} of {prompts.dtype}; expected floats {expected}")
    if prompts.shape[1] != form.length:
        raise SpecError(f"{label}: length: prompts are {list(prompts.shape)}; expected {expected}")
    if prompts.shape[2] != backbone.width:
        raise SpecError(f"{label}: width: prompts are {list(prompts.shape)}; expected {expected}")
    if index.dtype not in (torch.int64, torch.int32) or index.shape != (batch.texts,):
        raise SpecError(
            f"{label}: index: got {list(index.shape)} of {index.dtype}; expected integers [{batch.texts}], the prompt "
            "that each text reads"
        )
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= len(prompts):
        raise SpecError(
            f"{label}: index: got {low} to {high}; expected 0 to {len(prompts) - 1}, places among the {len(prompts)} "
            "prompts"
        )

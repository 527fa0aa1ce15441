"""The check of a form and its params before they are trained: what is wrong is said in words, not by torch."""

from dataclasses import is_dataclass, replace
from typing import Any, cast

import torch

from promptprior.backbone import Backbone
from promptprior.backbone.key_values import KeyValues
from promptprior.errors import ArtifactError, SpecError
from promptprior.notation import Params, Tensor
from promptprior.parameterisations.parameterisation import AnsweringForm, Foldable, Masking, Parameterisation
from promptprior.parameterisations.registry import GROUP, Form, form_class
from promptprior.tasks.sampling.batch import Batch


def check_form(form: Form, params: Params, batch: Batch, backbone: Backbone, copies: int) -> None:
    """Raise SpecError, naming the form, the field and what was expected, unless form and params can be trained.

    The form's name must be registered (a form that folds into a plain prompt needs none), params must be floating-point
    tensors with `copies` copies, and `prompts(params, batch)` must return ([P, L, D], [X]) for `batch`, a small one of
    copies that exist. A form that answers by itself is not asked: the run makes its answers, once.
    """
    label = f"parameterisation {form.name!r} ({type(form).__name__})"
    if not isinstance(form, Foldable):
        try:
            registered = form_class(form.name)
        except ArtifactError as error:
            raise SpecError(f"{label}: name: {error}; register it as an entry point of the group {GROUP}") from error
        if registered is not type(form):
            raise SpecError(f"{label}: name: {form.name!r} is {registered.__name__}'s; expected a name of its own")

    if not isinstance(params, dict) or not params:
        kind = "an empty dict" if isinstance(params, dict) else type(params).__name__
        raise SpecError(f"{label}: params: got {kind}; expected a dict of tensors by name")
    for name, value in params.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise SpecError(f"{label}: params[{name!r}]: got {kind}; expected a tensor of floating-point numbers")
        if value.ndim == 0 or value.shape[0] != copies:
            raise SpecError(
                f"{label}: params[{name!r}]: got shape {list(value.shape)}; expected a leading copies axis of {copies}"
            )
    if isinstance(form, AnsweringForm):
        return

    # A copy of the form answers, and the meter is put back: the check must not be part of a run's cost, nor leave
    # queries in the form's cache that the run would then not have to compute.
    probe: Any = replace(cast(Any, form)) if is_dataclass(form) else form
    meter = vars(replace(backbone.meter))
    try:
        with torch.no_grad():
            returned = probe.prompts(params, batch)
            hidden = probe.hidden(params, batch) if isinstance(probe, Masking) else None
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in params.items())
        raise SpecError(
            f"{label}: prompts(params, batch) failed with {type(error).__name__}: {error}; params are {shapes}"
        ) from error
    finally:
        vars(backbone.meter).update(meter)
    shape = _check_prompts(returned, form, label, batch.texts, backbone.width)
    if hidden is not None and (list(hidden.shape) != shape or hidden.dtype != torch.bool):
        raise SpecError(
            f"{label}: hidden: got {list(hidden.shape)} of {hidden.dtype}; expected {shape} of torch.bool, one for "
            "each token of the prompts, or None"
        )


def _check_prompts(returned: object, form: Parameterisation, label: str, texts: int, width: int) -> list[int]:
    # Returns how many prompts there are, and their length.
    kinds = (Tensor | KeyValues, Tensor)
    if not (isinstance(returned, tuple) and len(returned) == 2 and all(map(isinstance, returned, kinds))):
        raise SpecError(
            f"{label}: prompts(params, batch): got {type(returned).__name__}; expected two tensors, (prompts, index)"
        )
    prompts, index = returned
    if isinstance(prompts, KeyValues):
        shapes, count = [list(x.shape) for x in (prompts.keys, prompts.values)], len(prompts.keys)
        count = count if prompts.prefix_of is None else len(prompts.prefix_of)
        if shapes[0] != shapes[1] or len(shapes[0]) != 5 or shapes[0][3] != form.length:
            expected = f"expected twice [prefixes, layers, heads, length {form.length}, width of a head]"
            raise SpecError(f"{label}: prompts: got keys and values {shapes}; {expected}")
        if not (prompts.keys.is_floating_point() and prompts.values.is_floating_point()):
            types = f"{prompts.keys.dtype}, {prompts.values.dtype}"
            raise SpecError(f"{label}: prompts: got {types}; expected floating point")
    else:
        shape, count = list(prompts.shape), len(prompts) if prompts.ndim else 0
        expected = f"expected [prompts, length {form.length}, width {width}]"
        if prompts.ndim != 3 or not prompts.is_floating_point():
            raise SpecError(f"{label}: prompts: got {shape} of {prompts.dtype}; {expected} of floating-point numbers")
        if shape[1] != form.length:
            raise SpecError(f"{label}: length: got prompts {shape}; {expected}, as the form's `length` says")
        if shape[2] != width:
            raise SpecError(f"{label}: width: got prompts {shape}; {expected}, the backbone's width")
    if index.dtype not in (torch.int64, torch.int32) or index.shape != (texts,):
        raise SpecError(
            f"{label}: index: got {list(index.shape)} of {index.dtype}; expected integers [{texts}], the prompt that "
            "each text reads"
        )
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= count:
        raise SpecError(f"{label}: index: got {low} to {high}; expected 0 to {count - 1}, one of the prompts")
    return [count, form.length]

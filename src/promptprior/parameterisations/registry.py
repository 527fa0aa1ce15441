"""All parameterisations by the name that artifacts keep, those of other packages included.

Another package adds its own by an entry point of the group `promptprior.parameterisations` that names the dataclass:

    [project.entry-points."promptprior.parameterisations"]
    kv_prefix = "my_package.kv_prefix:KvPrefix"
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, cast, get_type_hints

from promptprior import plugins
from promptprior.backbone import Backbone
from promptprior.config.mapping import kind_name, shorten, to_mapping
from promptprior.errors import ArtifactError, SpecError, unknown_name
from promptprior.notation import Params
from promptprior.parameterisations.blend import Blend
from promptprior.parameterisations.decomposed import Decomposed
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.offset import Offset
from promptprior.parameterisations.parameterisation import AnsweringForm, Foldable, Parameterisation
from promptprior.parameterisations.prefix import Prefix, prefix_form
from promptprior.parameterisations.residual import Residual
from promptprior.parameterisations.retrieval.bank import Bank
from promptprior.parameterisations.retrieval.mixture import Mixture
from promptprior.parameterisations.weights import LoraForm, OwnForm

Form = Parameterisation | AnsweringForm
"""What gives params their meaning: they become prompts, or they answer texts without one."""

GROUP = "promptprior.parameterisations"
FORMS: tuple[type[Any], ...] = (
    Direct, Bank, Decomposed, Mixture, Offset, Residual, Prefix, LoraForm, OwnForm, Blend
)  # fmt: skip
PARAMETERISATIONS: Mapping[str, type[Any]] = {form.name: form for form in FORMS}


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


def make_form(name: str, settings: Mapping[str, object], **reads: object) -> Any:
    """The form of a name with the settings that a file keeps, and what else it reads. Raises ArtifactError for settings
    that it does not have, that are missing or of another type, and as `form_class` does."""
    cls = form_class(name)
    known = {
        item.name: item for item in fields(cls) if item.init and item.name not in reads and item.name != "backbone"
    }
    where = f"parameterisation_settings of {name!r}"
    hints = get_type_hints(cls)
    for key, value in settings.items():
        if key not in known:
            raise ArtifactError(f"{where}: {unknown_name('key', key, known)}")
        plain = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}.get(hints[key])
        if plain is not None and type(value) not in plain:
            raise ArtifactError(f"{where}: {key} is {shorten(value)}; expected {kind_name(hints[key])}")
    required = [n for n, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
    if missing := [key for key in required if key not in settings]:
        raise ArtifactError(f"{where} lack {', '.join(missing)}; the file was edited: copy it again")
    try:
        return cls(**settings, **reads)
    except (TypeError, ValueError, SpecError) as error:
        raise ArtifactError(f"{where}: {shorten(error)}; the file was edited: copy it again") from error


def parameterisation(name: str, settings: Mapping[str, object], backbone: Backbone) -> Form:
    """The form that an artifact names, with the backbone at hand where it reads one. Raises as `make_form` does, and
    ArtifactError for a prefix of a model with other layers."""
    reads_backbone = any(item.name == "backbone" for item in fields(form_class(name)))
    form = make_form(name, settings, **({"backbone": backbone} if reads_backbone else {}))
    if isinstance(form, Prefix):
        expected = prefix_form(backbone, form.length, form.layers)
        shapes = [(f.depth, f.heads, f.head_width) for f in (form, expected)]
        if shapes[0] != shapes[1]:
            raise ArtifactError(
                f"a prefix of (layers, heads, width of a head) {shapes[0]}; {backbone.card.name} has {shapes[1]}: name "
                "the backbone it was trained on (--backbone)"
            )
    return form


def plain_settings(form: Form) -> dict[str, object]:
    """What an artifact keeps to make a form again: its fields, without the backbone it reads."""
    names = [f.name for f in fields(cast(Any, form)) if f.init and f.name != "backbone"]
    return {name: to_mapping(getattr(form, name)) for name in names}


def folded(form: Form, params: Params) -> tuple[Form, Params]:
    """A trained form as a plain prompt, or a plain prefix, where it is no more than that; any other as it is."""
    if not isinstance(form, Foldable):
        return form, params
    plain = form.fold(params)
    return getattr(form, "plain", None) or Direct(*plain["prompt"].shape[1:]), plain

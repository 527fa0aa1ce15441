"""How a recipe declares what it is and what can be chosen: facts, and options of its source stage or of its targets."""

from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields, make_dataclass, replace
from functools import cache
from typing import Any, TypeVar, Unpack, cast, get_origin, get_type_hints

from promptprior.config.mapping import FlagText, from_mapping
from promptprior.config.training import Bounds
from promptprior.errors import SpecError

MOST_OF_OPTION = 10**8


def fact(default: Any, *, init: bool = True, omit_from_hash_if: Callable[[Any], bool] | None = None) -> Any:
    """A field that no option can set, such as a method's name or whether it needs sources.

    `init` is off for what is true of the class. A fact that came later is left out of hashes
    `omit_from_hash_if(recipe)`.
    """
    return field(
        default=default, init=init, kw_only=True, metadata={"fact": True, "omit_from_hash_if": omit_from_hash_if}
    )


class OptionRules(Bounds, total=False):
    """What an option's value must be (its bounds), and when it is left out of hashes.

    - `omit_from_hash_if_default`: the option came later than results: at its default it is no part of their hashes.
    - `omit_from_hash_if`: the same, where this is true of the recipe.
    """

    omit_from_hash_if_default: bool
    omit_from_hash_if: Callable[[Any], bool]


def option(default: Any, text: str, *, target: bool = False, **rules: Unpack[OptionRules]) -> Any:
    """A choice of the recipe, with the line that help shows.

    `target`: only targets see it, so that arms which differ in nothing else share a prior. Numbers end at
    `MOST_OF_OPTION` unless `most` says otherwise.
    """
    first = default[0] if isinstance(default, tuple) and default else default
    if {"least", "above"} & rules.keys() or (isinstance(first, int | float) and not isinstance(first, bool)):
        rules.setdefault("most", MOST_OF_OPTION)
    return field(default=default, kw_only=True, metadata={"help": text, "target": target, **rules})


def target_option(default: Any, text: str, **rules: Unpack[OptionRules]) -> Any:
    """An option that only targets see: it is no part of what decides a prior."""
    return option(default, text, target=True, **rules)


R = TypeVar("R")


def with_options(recipe: R, options: Mapping[str, object], where: str, flags: str = "--options.") -> R:
    """A recipe with other options; facts, and options that are not given, stay as they are.

    `flags` is what stands before an option where it is a flag.

    Raises SpecError for unknown names, values of another type, and values outside their bounds.
    """
    if not options:
        return recipe
    # A list may be given as flags give it: one value, or several with commas. Options are free values until here.
    lists = {name for name, hint in get_type_hints(type(recipe)).items() if get_origin(hint) is tuple}
    as_given = {n: FlagText(v) if n in lists and type(v) in (str, int, float) else v for n, v in options.items()}
    read = from_mapping(_options_class(cast(Any, type(recipe))), as_given, where, flags=flags)
    changes = {f.name: getattr(read, f.name) for f in fields(read) if f.name in options}
    try:
        return replace(recipe, **changes)  # type: ignore[type-var]  # a dataclass
    except SpecError as error:
        # bounds are checked by the recipe, which does not know whether options stand under its name (compare) or not
        text = str(error).replace(f"--options.{cast(Any, recipe).name}.", "--options.").replace("--options.", flags)
        raise SpecError(f"{where}: {text}") from error


def option_fields(recipe: Any) -> list[Field[Any]]:
    """The fields of a recipe that are options."""
    return [item for item in fields(recipe) if item.init and not item.metadata.get("fact")]


@cache
def _options_class(kind: type[Any]) -> Any:
    """A plain dataclass of the options alone, to read a mapping by."""
    hints = get_type_hints(kind)
    copies = [
        (f.name, hints[f.name], field(default=f.default, default_factory=f.default_factory, metadata=f.metadata))
        for f in option_fields(kind)
    ]
    return make_dataclass(kind.__name__, copies)

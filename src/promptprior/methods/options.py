"""How a recipe declares what it is and what can be chosen: facts, and options of its source stage or of its targets."""

from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields, make_dataclass, replace
from functools import cache
from typing import Any, TypedDict, TypeVar, Unpack, cast, get_type_hints

from promptprior.config.mapping import from_mapping
from promptprior.errors import SpecError


def fact(default: Any, *, init: bool = True, omit_from_hash_if: Callable[[Any], bool] | None = None) -> Any:
    """A field that no option can set, such as a method's name or whether it needs sources.

    `init` is off for what is true of the class. A fact that came later is left out of hashes
    `omit_from_hash_if(recipe)`.
    """
    return field(
        default=default, init=init, kw_only=True, metadata={"fact": True, "omit_from_hash_if": omit_from_hash_if}
    )


class OptionRules(TypedDict, total=False):
    """What an option's value must be, and when it is left out of hashes.

    least, above                 bounds of the number, or of every element of a tuple; None passes
    at_least_one                 an empty tuple is refused
    omit_from_hash_if_default    the option came later than results: at its default it is no part of their hashes
    omit_from_hash_if            the same, where this is true of the recipe
    """

    least: float
    above: float
    at_least_one: bool
    omit_from_hash_if_default: bool
    omit_from_hash_if: Callable[[Any], bool]


def option(default: Any, text: str, *, target: bool = False, **rules: Unpack[OptionRules]) -> Any:
    """A choice of the recipe, with the line that help shows.

    `target`: only targets see it, so that arms which differ in nothing else share a prior.
    """
    return field(default=default, kw_only=True, metadata={"help": text, "target": target, **rules})


def target_option(default: Any, text: str, **rules: Unpack[OptionRules]) -> Any:
    """An option that only targets see: it is no part of what decides a prior."""
    return option(default, text, target=True, **rules)


def check_bounds(recipe: Any) -> None:
    """Raise SpecError for an option outside its bounds, naming value, flag and what was expected."""
    for item in fields(recipe):
        least, above = item.metadata.get("least"), item.metadata.get("above")
        value = getattr(recipe, item.name)
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        is_low = any((least is not None and n < least) or (above is not None and n <= above) for n in numbers)
        if is_low or (item.metadata.get("at_least_one") and not numbers):
            bound = f"at least {least:g}" if least is not None else f"more than {above:g}" if above is not None else ""
            expected = f"at least one number{', each ' + bound if bound else ''}" if isinstance(value, tuple) else bound
            raise SpecError(
                f"{item.name.replace('_', ' ')} {value} (--options.{item.name.replace('_', '-')}): expected {expected}"
            )


R = TypeVar("R")


def with_options(recipe: R, options: Mapping[str, object], where: str, flags: str = "--options.") -> R:
    """A recipe with other options; facts, and options that are not given, stay as they are.

    `flags` is what stands before an option where it is a flag.

    Raises SpecError for unknown names, values of another type, and values outside their bounds.
    """
    if not options:
        return recipe
    read = from_mapping(_options_class(cast(Any, type(recipe))), options, where, flags=flags)
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

"""Recipes, one per paper. `METHODS` is all of them by name; a new one is a file and a line here.

Methods of other packages are found through the entry point group "promptprior.methods": an entry names a recipe value.
"""

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from typing import cast

from promptprior import plugins
from promptprior.errors import SpecError, unknown_name
from promptprior.methods.contract import Method, Recipe
from promptprior.methods.from_sources import (
    attempt,
    bmtpt,
    meta_prompt_tuning,
    mpt,
    multitask,
    prompt_arithmetic,
    ridge_prior,
    spot,
    tpt,
)
from promptprior.methods.learned import AdaptationInit, FitResult
from promptprior.methods.options import fact, option, target_option, with_options
from promptprior.methods.run_context import Episode, InitialParams, RunContext
from promptprior.methods.target_only import (
    auto,
    context_tuning,
    dept,
    in_context,
    prefix_tuning,
    probes,
    prompt_tuning,
    residual_prompt_tuning,
    weight_tuning,
)

MODULES = (  # in the order of lists: without sources first
    prompt_tuning, prefix_tuning, probes, auto, in_context, context_tuning, weight_tuning, residual_prompt_tuning, dept,
    multitask, spot, prompt_arithmetic, attempt, mpt, bmtpt, meta_prompt_tuning, ridge_prior, tpt,
)  # fmt: skip
_OWN: dict[str, Recipe] = {arm.name: arm for module in MODULES for arm in module.ARMS}
_OTHERS = cast(MutableMapping[str, Recipe], plugins.load_plugins("promptprior.methods", _OWN))
METHODS: MutableMapping[str, Recipe] = ChainMap(_OWN, _OTHERS)
"""Every method by its name, those of other packages included; `METHODS["mine"] = Mine()` adds one for a session."""


def check_recipe(method: object) -> None:
    """Raise SpecError unless this is a recipe: a value, not its class, its name or something like it."""
    if not isinstance(method, Recipe):
        hint = "call the class" if isinstance(method, type) else "make_method(NAME) gives one by its name"
        raise SpecError(f"method {method!r}: expected a Recipe (promptprior.methods); {hint}")


def make_method(name: str, options: Mapping[str, object] | None = None, flags: str = "--options.") -> Recipe:
    """A method by name, with its own options ("retrieval" of spot); errors write `flags` before an option's name.

    Raises SpecError for unknown names and options.
    """
    if name not in METHODS:
        raise SpecError(unknown_name("method", name, METHODS) + " (--methods)")
    recipe = METHODS[name]
    if not isinstance(recipe, Recipe) or recipe.name != name:
        raise SpecError(
            f"method {name!r} is {recipe!r}; expected a Recipe (promptprior.methods) whose name is {name!r}"
        )
    return with_options(recipe, options or {}, f"method {name}", flags)


__all__ = [
    "METHODS",
    "AdaptationInit",
    "Episode",
    "FitResult",
    "InitialParams",
    "Method",
    "Recipe",
    "RunContext",
    "check_recipe",
    "fact",
    "make_method",
    "option",
    "target_option",
]

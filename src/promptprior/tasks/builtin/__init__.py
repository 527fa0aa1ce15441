"""The built-in suite: small real tasks made at run time from open data that ordinary packages ship.

No answer is written here by hand: every label is read from a package or computed from what it ships.
An entity (a lemma, a country, a number) stands in the same split in every task, so that nothing a source
task trains on is asked in a target task's test.
"""

from collections.abc import Mapping
from functools import cache

from promptprior.errors import SpecError, unknown_name
from promptprior.tasks.builtin import morphology, sentiment
from promptprior.tasks.builtin.recipe import Recipe
from promptprior.tasks.task import Task

_RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe for module in (morphology, sentiment) for recipe in module.RECIPES
}

FAMILIES: Mapping[str, tuple[str, ...]] = {
    family: tuple(name for name, recipe in _RECIPES.items() if recipe.family == family)
    for family in dict.fromkeys(recipe.family for recipe in _RECIPES.values())
}
"""Family to the names of its tasks."""


def names() -> tuple[str, ...]:
    """The names of all built-in tasks, family by family."""
    return tuple(_RECIPES)


@cache
def load(name: str) -> Task:
    """A built-in task. Raises SpecError for an unknown name, DataError when its package is not installed."""
    if name not in _RECIPES:
        raise SpecError(unknown_name("built-in task", name, _RECIPES))
    return _RECIPES[name].task()

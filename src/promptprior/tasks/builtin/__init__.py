"""The built-in suite: small real tasks made at run time from open data that ordinary packages ship.

No answer is written here by hand: every label is read from a package or computed from what it ships.
An entity (a lemma, a country, a number) stands in the same split in every task, so that nothing a source
task trains on is asked in a target task's test.
"""

from collections.abc import Mapping
from functools import cache

from promptprior.errors import SpecError, unknown_name
from promptprior.tasks.builtin import (
    emoji,
    etymology,
    geography,
    identification,
    morphology,
    numbers,
    people,
    phonetics,
    senses,
    sentiment,
    translation,
)
from promptprior.tasks.builtin.generator import Recipe
from promptprior.tasks.task import Task

RECIPES: tuple[Recipe, ...] = (
    *sentiment.RECIPES,
    *senses.RECIPES,
    *emoji.RECIPES,
    *morphology.RECIPES,
    *phonetics.RECIPES,
    *etymology.RECIPES,
    *identification.RECIPES,
    *translation.RECIPES,
    *people.RECIPES,
    *geography.RECIPES,
    *numbers.RECIPES,
)

FAMILIES: Mapping[str, tuple[str, ...]] = {
    family: tuple(recipe.name for recipe in RECIPES if recipe.family == family)
    for family in dict.fromkeys(recipe.family for recipe in RECIPES)
}
"""Family to the names of its tasks."""


def names() -> tuple[str, ...]:
    """The names of all built-in tasks, family by family."""
    return tuple(recipe.name for recipe in RECIPES)


@cache
def load(name: str) -> Task:
    """A built-in task. Raises SpecError for an unknown name, DataError when its package is not installed."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe.task()
    raise SpecError(unknown_name("built-in task", name, names()))

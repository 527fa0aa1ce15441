"""The built-in suite: small real tasks made at run time from open data that ordinary packages ship.

No answer is written here by hand: every label is read from a package or computed from what it ships.
An entity (a lemma, a country, a number) stands in the same split in every task, so that nothing a source
task trains on is asked in a target task's test.

A family is one file of this folder, with tables of facts and RECIPES over their columns, and one line of FILES.
"""

from collections.abc import Mapping
from functools import cache
from importlib import import_module

from promptprior.errors import SpecError, unknown_name
from promptprior.tasks.builtin.generator import TaskRecipe
from promptprior.tasks.task import Task

FILES = (
    "sentiment",
    "senses",
    "emoji",
    "morphology",
    "phonetics",
    "etymology",
    "identification",
    "translation",
    "people",
    "geography",
    "numbers",
)

RECIPES: tuple[TaskRecipe, ...] = tuple(
    recipe for file in FILES for recipe in import_module(f"promptprior.tasks.builtin.{file}").RECIPES
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
def make_task(name: str) -> Task:
    """A built-in task. Raises SpecError for an unknown name, DataError when its package is not installed."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe.task()
    raise SpecError(unknown_name("built-in task", name, names()))

"""Numbers written out in words."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module

from promptprior.tasks.builtin.generator import Item, Recipe, Source

FAMILY = "numbers"
NUMBERS = Source("num2words", "num2words", "LGPL-2.1 (rules, not text)", "num2words' rules of number names")
TONGUES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish", "it": "Italian"}


def to_digits(language: str) -> Iterator[Item]:
    """A number below a thousand in words, to digits."""
    in_words = import_module("num2words").num2words
    for number in range(11, 1000):
        yield Item(str(number), in_words(number, lang=language), (str(number),))


def recipe(language: str, name: str) -> Recipe:
    """Read numbers of one language."""
    items = partial(to_digits, language)
    template = name + ": {}\nNumber:"
    return Recipe(f"{name.lower()}_number", FAMILY, template, items, (NUMBERS,), False, ("exact_match",))


RECIPES = tuple(recipe(language, name) for language, name in TONGUES.items())

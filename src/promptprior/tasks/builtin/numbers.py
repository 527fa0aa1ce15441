"""Numbers written out in words."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module

from promptprior.tasks.builtin.generator import Facts, Source, TaskRecipe

FAMILY = "numbers"
NUMBERS = Source("num2words", "num2words", "LGPL-2.1 (rules, not text)", "num2words' rules of number names")
LANGUAGES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish", "it": "Italian"}


def numbers(code: str) -> Iterator[Facts]:
    """The numbers from 11 to 999 in words of one language and in digits."""
    in_words = import_module("num2words").num2words
    for number in range(11, 1000):
        yield {"entity": str(number), "words": in_words(number, lang=code), "digits": str(number)}


RECIPES = tuple(
    TaskRecipe(
        f"{language.lower()}_number",
        FAMILY,
        language + ": {}\nNumber:",
        partial(numbers, code),
        asks="words",
        answers="digits",
        sources=(NUMBERS,),
        choice=False,
        metrics=("exact_match",),
    )
    for code, language in LANGUAGES.items()
)

"""What countries and languages are called in other languages, from Unicode CLDR."""

from collections.abc import Iterator
from functools import partial

from promptprior.tasks.builtin.generator import Facts, TaskRecipe
from promptprior.tasks.builtin.geography import CLDR

FAMILY = "translation"
LANGUAGES = {"fr": "French", "de": "German", "es": "Spanish", "it": "Italian"}
PSEUDO = ("QO", "XA", "XB", "ZZ")
"""CLDR's codes for outlying Oceania, made-up accents and the unknown."""


def pairs(language: str) -> Iterator[Facts]:
    """Names of countries and languages with two-letter codes, in a language and in English, where the two differ.

    The entity of a country is its bare code, as in the geography tasks.
    """
    from babel import Locale

    for kind, prefix in (("territories", ""), ("languages", "languages ")):
        english = getattr(Locale("en"), kind)
        for code, name in sorted(getattr(Locale(language), kind).items()):
            plain = len(code) == 2 and code in english and "(" not in name + english[code] and code not in PSEUDO
            if plain and name.casefold() != english[code].casefold():
                yield {"entity": prefix + code, "name": name, "english": english[code]}


TASKS = [
    *(
        (f"{name.lower()}_to_english", code, f"{name}: {{}}\nEnglish:", "name", "english")
        for code, name in LANGUAGES.items()
    ),
    ("english_to_french", "fr", "English: {}\nFrench:", "english", "name"),
]
RECIPES = tuple(
    TaskRecipe(
        name, FAMILY, template, partial(pairs, code), asks, answers, (CLDR,), choice=False, metrics=("exact_match",)
    )
    for name, code, template, asks, answers in TASKS
)

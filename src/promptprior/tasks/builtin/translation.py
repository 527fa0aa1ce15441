"""What countries and languages are called in other languages, from Unicode CLDR."""

from collections.abc import Iterator
from functools import partial

from promptprior.tasks.builtin.generator import Item, Recipe
from promptprior.tasks.builtin.geography import CLDR

FAMILY = "translation"
TONGUES = {"fr": "French", "de": "German", "es": "Spanish", "it": "Italian"}
PSEUDO = ("QO", "XA", "XB", "ZZ")
"""CLDR's codes for outlying Oceania, made-up accents and the unknown."""


def names_in(language: str) -> Iterator[tuple[str, str, str]]:
    """Code, name in a language and English name, of countries and of languages with two-letter codes."""
    from babel import Locale

    here, english = Locale(language), Locale("en")
    for kind in ("territories", "languages"):
        ours = getattr(english, kind)
        for code, name in sorted(getattr(here, kind).items()):
            if len(code) == 2 and code in ours and "(" not in name + ours[code] and code not in PSEUDO:
                yield f"{kind} {code}", name, ours[code]


def to_english(language: str) -> Iterator[Item]:
    """A name to its English, where the two differ."""
    for code, name, english in names_in(language):
        if name.casefold() != english.casefold():
            yield Item(entity(code), name, (english,))


def from_english(language: str) -> Iterator[Item]:
    """English to another language, where the two differ."""
    for item in to_english(language):
        yield Item(item.entity, item.answers[0], (item.value,))


def entity(code: str) -> str:
    """A country's bare code, as in the geography tasks; a language's own."""
    return code.removeprefix("territories ")


def recipe(language: str, name: str) -> Recipe:
    """Translate names into English."""
    items = partial(to_english, language)
    template = name + ": {}\nEnglish:"
    return Recipe(f"{name.lower()}_to_english", FAMILY, template, items, (CLDR,), False, ("exact_match",))


RECIPES = (
    *(recipe(language, name) for language, name in TONGUES.items()),
    Recipe(
        "english_to_french",
        FAMILY,
        "English: {}\nFrench:",
        partial(from_english, "fr"),
        (CLDR,),
        False,
        ("exact_match",),
    ),
)

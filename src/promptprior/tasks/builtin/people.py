"""Given names and family names."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module

from promptprior.tasks.builtin.generator import Facts, Recipe, Source

FAMILY = "names"
FAKER = Source("faker", "faker", "MIT", "Faker's names by country")
ENGLISH = {"English": "en_US"}
LOCALES = {"Dutch": "nl_NL", "French": "fr_FR", "German": "de_DE", "Italian": "it_IT", "Spanish": "es_ES"}
GENDER = "Name: {}\nGender:"


def names(kinds: dict[str, str], locales: dict[str, str]) -> Iterator[Facts]:
    """Names of some kinds (a label to Faker's list) and languages; names with two answers are dropped later."""
    for language, locale in locales.items():
        provider = import_module(f"faker.providers.person.{locale}").Provider
        for kind, names_of_kind in kinds.items():
            for name in sorted({name for name in getattr(provider, names_of_kind) if name.isalpha()}):
                yield {"name": name, "kind": kind, "language": language}


def gender(name: str, locale: str) -> Recipe:
    """Given names of one country with the sex that bears them."""
    table = partial(names, {"female": "first_names_female", "male": "first_names_male"}, {"": locale})
    return Recipe(name, FAMILY, GENDER, table, "name", "kind", (FAKER,))


given_or_family = partial(names, {"given": "first_names", "family": "last_names"}, ENGLISH)
family_names = partial(names, {"family": "last_names"}, LOCALES)
RECIPES = (
    gender("name_gender", ENGLISH["English"]),
    gender("german_name_gender", LOCALES["German"]),
    gender("spanish_name_gender", LOCALES["Spanish"]),
    gender("italian_name_gender", LOCALES["Italian"]),
    Recipe("given_or_family", FAMILY, "Name: {}\nKind of name:", given_or_family, "name", "kind", (FAKER,)),
    Recipe("family_name_origin", FAMILY, "Family name: {}\nOrigin:", family_names, "name", "language", (FAKER,)),
)

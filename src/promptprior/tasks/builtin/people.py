"""Given names and family names."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module

from promptprior.tasks.builtin.generator import Facts, Recipe, Source

FAMILY = "names"
FAKER = Source("faker", "faker", "MIT", "Faker's names by country")
AMERICAN = "en_US"
LOCALES = {"Dutch": "nl_NL", "French": "fr_FR", "German": "de_DE", "Italian": "it_IT", "Spanish": "es_ES"}


def people(kinds: dict[str, str], locales: dict[str, str]) -> Iterator[Facts]:
    """Names of some kinds (a label to Faker's list) and languages; names with two answers are dropped later."""
    for language, locale in locales.items():
        provider = import_module(f"faker.providers.person.{locale}").Provider
        for kind, list_name in kinds.items():
            for name in sorted({name for name in getattr(provider, list_name) if name.isalpha()}):
                yield {"name": name, "kind": kind, "language": language}


given_names = {"female": "first_names_female", "male": "first_names_male"}
given_or_family = partial(people, {"given": "first_names", "family": "last_names"}, {"": AMERICAN})
family_names = partial(people, {"family": "last_names"}, LOCALES)
GENDERS = {
    "name_gender": AMERICAN,
    "german_name_gender": LOCALES["German"],
    "spanish_name_gender": LOCALES["Spanish"],
    "italian_name_gender": LOCALES["Italian"],
}
RECIPES = (
    *(
        Recipe(name, FAMILY, "Name: {}\nGender:", partial(people, given_names, {"": locale}), "name", "kind", (FAKER,))
        for name, locale in GENDERS.items()
    ),
    Recipe("given_or_family", FAMILY, "Name: {}\nKind of name:", given_or_family, "name", "kind", (FAKER,)),
    Recipe("family_name_origin", FAMILY, "Family name: {}\nOrigin:", family_names, "name", "language", (FAKER,)),
)

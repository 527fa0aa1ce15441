"""Given names and family names."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module

from promptprior.tasks.builtin.generator import Facts, Source, TaskRecipe

FAMILY = "names"
FAKER = Source("faker", "faker", "MIT", "Faker's names by country")
AMERICAN = "en_US"
LOCALES = {"Dutch": "nl_NL", "French": "fr_FR", "German": "de_DE", "Italian": "it_IT", "Spanish": "es_ES"}


def people(lists: dict[str, str], locales: dict[str, str]) -> Iterator[Facts]:
    """Names in Faker's `lists` (by the kind of name) for each language; names with two answers are dropped later."""
    for language, locale in locales.items():
        provider = import_module(f"faker.providers.person.{locale}").Provider
        for kind, list_name in lists.items():
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
        TaskRecipe(
            name, FAMILY, "Name: {}\nGender:", partial(people, given_names, {"": locale}), "name", "kind", (FAKER,)
        )
        for name, locale in GENDERS.items()
    ),
    TaskRecipe("given_or_family", FAMILY, "Name: {}\nKind of name:", given_or_family, "name", "kind", (FAKER,)),
    TaskRecipe("family_name_origin", FAMILY, "Family name: {}\nOrigin:", family_names, "name", "language", (FAKER,)),
)

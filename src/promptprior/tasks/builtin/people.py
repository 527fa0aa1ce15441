"""Given names and family names."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module

from promptprior.tasks.builtin.recipe import Item, Recipe, Source

FAMILY = "names"
CENSUS = Source("zxcvbn", "zxcvbn", "public domain", "names counted in the US census of 1990")
FAKER = Source("faker", "faker", "MIT", "Faker's names by country")
LOCALES = {"Dutch": "nl_NL", "French": "fr_FR", "German": "de_DE", "Italian": "it_IT", "Spanish": "es_ES"}


def census(kind: str) -> list[str]:
    """Names of one kind, commonest first."""
    return [name.capitalize() for name in import_module("zxcvbn.frequency_lists").FREQUENCY_LISTS[kind]]


def american_genders() -> Iterator[Item]:
    """Given names borne by one sex only, among the commonest of each."""
    for label in ("female", "male"):
        for name in census(f"{label}_names")[:900]:
            yield Item(name, name, (label,))


def given_or_family() -> Iterator[Item]:
    """Given names and family names that are only one of the two."""
    for name in census("female_names")[:900] + census("male_names")[:900]:
        yield Item(name, name, ("given",))
    for name in census("surnames")[:2000]:
        yield Item(name, name, ("family",))


def known_names(locale: str, kind: str) -> tuple[str, ...]:
    """Faker's names of one kind in one locale, sorted."""
    provider = import_module(f"faker.providers.person.{locale}").Provider
    return tuple(sorted(name for name in set(getattr(provider, kind)) if name.isalpha()))


def local_genders(locale: str) -> Iterator[Item]:
    """Given names of one country with the sex that bears them."""
    for label in ("female", "male"):
        for name in known_names(locale, f"first_names_{label}"):
            yield Item(name, name, (label,))


def family_name_origins() -> Iterator[Item]:
    """Family names with the language of the only country here that has them."""
    for language, locale in LOCALES.items():
        for name in known_names(locale, "last_names"):
            yield Item(name, name, (language,))


GENDER = "Name: {}\nGender:"
RECIPES = (
    Recipe("name_gender", FAMILY, GENDER, american_genders, (CENSUS,)),
    Recipe("german_name_gender", FAMILY, GENDER, partial(local_genders, "de_DE"), (FAKER,)),
    Recipe("spanish_name_gender", FAMILY, GENDER, partial(local_genders, "es_ES"), (FAKER,)),
    Recipe("italian_name_gender", FAMILY, GENDER, partial(local_genders, "it_IT"), (FAKER,)),
    Recipe("given_or_family", FAMILY, "Name: {}\nKind of name:", given_or_family, (CENSUS,)),
    Recipe("family_name_origin", FAMILY, "Family name: {}\nOrigin:", family_name_origins, (FAKER,)),
)

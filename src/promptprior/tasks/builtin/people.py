"""Given names and family names."""

from collections.abc import Iterator
from functools import partial
from importlib import import_module

from promptprior.tasks.builtin.generator import Item, Recipe, Source

FAMILY = "names"
FAKER = Source("faker", "faker", "MIT", "Faker's names by country")
AMERICA = "en_US"
LOCALES = {"Dutch": "nl_NL", "French": "fr_FR", "German": "de_DE", "Italian": "it_IT", "Spanish": "es_ES"}


def known_names(locale: str, kind: str) -> tuple[str, ...]:
    """Faker's names of one kind in one locale, sorted."""
    provider = import_module(f"faker.providers.person.{locale}").Provider
    return tuple(sorted(name for name in set(getattr(provider, kind)) if name.isalpha()))


def given_or_family() -> Iterator[Item]:
    """American names; those that are both are dropped later as ambiguous."""
    for kind, label in (("first_names", "given"), ("last_names", "family")):
        for name in known_names(AMERICA, kind):
            yield Item(name, name, (label,))


def local_genders(locale: str) -> Iterator[Item]:
    """Given names of one country with the sex that bears them; those of both are dropped later."""
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
    Recipe("name_gender", FAMILY, GENDER, partial(local_genders, AMERICA), (FAKER,)),
    Recipe("german_name_gender", FAMILY, GENDER, partial(local_genders, "de_DE"), (FAKER,)),
    Recipe("spanish_name_gender", FAMILY, GENDER, partial(local_genders, "es_ES"), (FAKER,)),
    Recipe("italian_name_gender", FAMILY, GENDER, partial(local_genders, "it_IT"), (FAKER,)),
    Recipe("given_or_family", FAMILY, "Name: {}\nKind of name:", given_or_family, (FAKER,)),
    Recipe("family_name_origin", FAMILY, "Family name: {}\nOrigin:", family_name_origins, (FAKER,)),
)

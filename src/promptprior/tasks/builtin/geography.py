"""Countries and cities: where they lie, what is spoken and paid there."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from promptprior.tasks.builtin.generator import Item, Recipe, Source, frequent

FAMILY = "geography"
COUNTRIES = Source("countryinfo", "countryinfo", "MIT", "countryinfo tables of countries")
CLDR = Source("babel", "babel", "Unicode-3.0", "Unicode CLDR")
AIRPORTS = Source("airportsdata", "airportsdata", "MIT", "airportsdata table of airports")


@cache
def countries() -> dict[str, Mapping[str, Any]]:
    """ISO alpha-2 code to what countryinfo says of a country that CLDR names too."""
    from babel import Locale
    from countryinfo import all_countries

    named = Locale("en").territories
    infos = [country.info() for country in all_countries()]
    return {
        info["ISO"]["alpha2"]: info for info in infos if info.get("name") and info.get("ISO", {}).get("alpha2") in named
    }


def country_name(code: str) -> str:
    """CLDR's English name of a country.

    >>> country_name("FR")
    'France'
    """
    from babel import Locale

    return Locale("en").territories[code].split(" (")[0]


def facts(key: str) -> Iterator[tuple[str, str]]:
    """Country codes with one field of their entry, where it is filled."""
    for code, info in sorted(countries().items()):
        if info.get(key) and " / " not in str(info[key]):
            yield code, str(info[key])


def country_continents() -> Iterator[Item]:
    """Country to continent; Oceania has too few countries to be a class."""
    items = (Item(code, country_name(code), (region,)) for code, region in facts("region"))
    yield from frequent(items, 4)


def country_capitals() -> Iterator[Item]:
    """Country to capital."""
    for code, capital in facts("capital"):
        yield Item(code, country_name(code), (capital,))


def capital_countries() -> Iterator[Item]:
    """Capital to country, accepting CLDR's and countryinfo's name."""
    for code, capital in facts("capital"):
        names = dict.fromkeys((country_name(code), countries()[code]["name"]))
        yield Item(code, capital, tuple(names))


def country_demonyms() -> Iterator[Item]:
    """Country to what its people are called."""
    for code, demonym in facts("demonym"):
        yield Item(code, country_name(code), tuple(part.strip() for part in demonym.split("/")))


def country_languages() -> Iterator[Item]:
    """Country to its official languages, the most spoken first."""
    from babel import Locale
    from babel.languages import get_official_languages

    english = Locale("en").languages
    for code in sorted(countries()):
        spoken = [english[language] for language in get_official_languages(code) if language in english]
        if spoken:
            yield Item(code, country_name(code), tuple(spoken))


def country_currencies() -> Iterator[Item]:
    """Country to the currency it uses today."""
    from babel.numbers import get_currency_name, get_territory_currencies

    for code in sorted(countries()):
        used = get_territory_currencies(code)
        if used:
            yield Item(code, country_name(code), (get_currency_name(used[0], locale="en"),))


@cache
def cities() -> tuple[Mapping[str, Any], ...]:
    """One row for each city of a country that has an airport with an IATA code; plain city names only."""
    from airportsdata import load

    rows: dict[tuple[str, str], Mapping[str, Any]] = {}
    for _, row in sorted(load("IATA").items()):
        if row["city"].replace(" ", "").isalpha() and row["country"] in countries():
            rows.setdefault((row["city"], row["country"]), row)
    return tuple(rows.values())


def city_countries() -> Iterator[Item]:
    """City to country, among the six countries with most such cities."""
    items = (Item(row["city"], row["city"], (country_name(row["country"]),)) for row in cities())
    yield from frequent(items, 6)


def city_continents() -> Iterator[Item]:
    """City to continent."""
    for row in cities():
        region = countries()[row["country"]].get("region")
        if region:
            yield Item(row["city"], row["city"], (region,))


def city_hemispheres() -> Iterator[Item]:
    """City to the half of the Earth it lies in, at least five degrees from the equator."""
    for row in cities():
        if abs(row["lat"]) > 5:
            yield Item(row["city"], row["city"], ("north" if row["lat"] > 0 else "south",))


def airfields() -> Iterator[Mapping[str, Any]]:
    """Every airfield there is, small ones too, with a plain city name."""
    from airportsdata import load

    rows = sorted(load("ICAO").items())
    return (row for _, row in rows if row["city"].replace(" ", "").isalpha())


def city_states() -> Iterator[Item]:
    """City of the United States to state, among the four with most airports."""
    items = (
        Item(row["city"], row["city"], (row["subd"],)) for row in airfields() if row["country"] == "US" and row["subd"]
    )
    yield from frequent(items, 4)


CITY = (AIRPORTS, COUNTRIES, CLDR)
COUNTRY = (COUNTRIES, CLDR)
FREE = ("exact_match",)
RECIPES = (
    Recipe("country_continent", FAMILY, "Country: {}\nContinent:", country_continents, COUNTRY),
    Recipe("city_continent", FAMILY, "City: {}\nContinent:", city_continents, CITY),
    Recipe("city_country", FAMILY, "City: {}\nCountry:", city_countries, CITY),
    Recipe("city_hemisphere", FAMILY, "City: {}\nHalf of the Earth:", city_hemispheres, CITY),
    Recipe("city_state", FAMILY, "City: {}\nState:", city_states, CITY),
    Recipe("capital_country", FAMILY, "Capital: {}\nCountry:", capital_countries, COUNTRY, False, FREE),
    Recipe("country_capital", FAMILY, "Country: {}\nCapital:", country_capitals, COUNTRY, False, FREE),
    Recipe("country_demonym", FAMILY, "Country: {}\nPeople:", country_demonyms, COUNTRY, False, FREE),
    Recipe("country_language", FAMILY, "Country: {}\nLanguage:", country_languages, COUNTRY, False, FREE),
    Recipe("country_currency", FAMILY, "Country: {}\nCurrency:", country_currencies, COUNTRY, False, FREE),
)

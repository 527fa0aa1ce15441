"""Inflection and word classes of common English words."""

from collections.abc import Iterator
from functools import partial

from promptprior.tasks.builtin.common_words import FREQUENCY, LEXICON, common_lemmas, is_common, only_part, rank
from promptprior.tasks.builtin.generator import Facts, TaskRecipe

FAMILY = "morphology"
PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}


def nouns() -> Iterator[Facts]:
    """Words that are only nouns and whose plural is itself in use.

    The column `form` holds every other lemma in the plural, so that a lemma is asked for its number only once.
    """
    plurals = {lemma: forms[0] for lemma, forms in common_lemmas("noun", 12000) if forms}
    used = [(w, p) for w, p in plurals.items() if p and w not in p and only_part(w) == "noun" and p[0] in rank()]
    for place, (lemma, plural) in enumerate(sorted(used)):
        form, number = (plural[0], "plural") if place % 2 else (lemma, "singular")
        yield {"entity": lemma, "singular": lemma, "plural": plural, "form": form, "number": number}


def inflections() -> Iterator[Facts]:
    """Verbs with those of their forms that are in use, and whether the past tense ends in -ed; adjectives likewise."""
    for lemma, forms in common_lemmas("verb", 15000):
        row: dict[str, str | tuple[str, ...]] = {"entity": lemma, "base": lemma}
        for slot, name in ((0, "past"), (2, "gerund")):  # the lexicon's order: past, participle, gerund, third person
            form = forms[slot] if len(forms) > slot else ()
            if form and form[0] != lemma and is_common(form[0], 20000):
                row[name] = form
        if forms and forms[0] and is_common(forms[0][0], 30000):
            row["regularity"] = "regular" if forms[0][0].endswith("ed") else "irregular"
        yield row
    for lemma, forms in common_lemmas("adj", 20000):
        if forms and forms[0] and forms[0][0] in rank():
            yield {"adjective": lemma, "comparative": forms[0]}


recipe = partial(TaskRecipe, family=FAMILY, sources=(LEXICON, FREQUENCY))
free_text = partial(recipe, choice=False, metrics=("exact_match",))
RECIPES = (
    free_text("noun_plural", template="Singular: {}\nPlural:", table=nouns, asks="singular", answers="plural"),
    free_text("noun_singular", template="Plural: {}\nSingular:", table=nouns, asks="plural", answers="singular"),
    free_text("verb_past", template="Verb: {}\nPast tense:", table=inflections, asks="base", answers="past"),
    free_text("verb_gerund", template="Verb: {}\nForm with -ing:", table=inflections, asks="base", answers="gerund"),
    free_text("verb_base", template="Past tense: {}\nVerb:", table=inflections, asks="past", answers="base"),
    free_text(
        "adjective_comparative",
        template="Adjective: {}\nComparative:",
        table=inflections,
        asks="adjective",
        answers="comparative",
    ),
    recipe(
        "part_of_speech",
        template="Word: {}\nPart of speech:",
        table=lambda: (  # words that can be only one part of speech
            {"word": lemma, "part": label}
            for part, label in PARTS.items()
            for lemma, _ in common_lemmas(part, 15000)
            if only_part(lemma) == part
        ),
        asks="word",
        answers="part",
    ),
    recipe("noun_number", template="Noun: {}\nNumber:", table=nouns, asks="form", answers="number"),
    recipe(
        "verb_regularity", template="Verb: {}\nPast tense is:", table=inflections, asks="base", answers="regularity"
    ),
)

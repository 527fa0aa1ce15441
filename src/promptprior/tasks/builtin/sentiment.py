"""What words feel like: human ratings of valence and of subjectivity."""

from collections import defaultdict
from collections.abc import Iterator
from statistics import mean
from xml.etree import ElementTree

from promptprior.tasks.builtin.common_words import FREQUENCY, LEXICON, is_common, lexicon, only_part
from promptprior.tasks.builtin.generator import Facts, Source, TaskRecipe

FAMILY = "sentiment"
VADER = Source("vaderSentiment", "vaderSentiment", "MIT", "VADER valence lexicon (ten raters a word)")
PATTERN = Source("textblob", "textblob", "PDDL-1.0", "Pattern subjectivity lexicon of English adjectives")


def valences() -> Iterator[Facts]:
    """Common words by their mean valence, -4 to 4.

    Polarity is asked of mild words only (0.4 to 2), because the strong are too easy: of those that can only be an
    adjective or a noun, and of those that can be a verb. A feeling is mild below 1.3 and strong above 2.4.
    """
    for line in VADER.file("vader_lexicon.txt").read_text(encoding="utf-8").splitlines():
        word, number, *_ = line.split("\t")
        valence = float(number)
        if not is_common(word, 40000):
            continue
        if 0.4 <= abs(valence) <= 2:
            parts = {only_part(word), "verb" if "verb" in lexicon().get(word, {}) else None}
            yield {"polarity": "positive" if valence > 0 else "negative"} | {part: word for part in parts if part}
        if abs(valence) < 1.3 or abs(valence) > 2.4:
            yield {"word": word, "strength": "strong" if abs(valence) > 2.4 else "mild"}


def subjectivities() -> Iterator[Facts]:
    """Adjectives that state a fact (mean subjectivity at most 0.2) or an opinion (at least 0.8)."""
    ratings: dict[str, list[float]] = defaultdict(list)
    for word in ElementTree.parse(PATTERN.file("en", "en-sentiment.xml")).getroot():
        ratings[word.attrib["form"]].append(float(word.attrib["subjectivity"]))
    for form, values in ratings.items():
        average = mean(values)
        if is_common(form, 30000) and not 0.2 < average < 0.8:
            yield {"adj": form, "kind": "opinion" if average > 0.5 else "fact"}


POLARITY = (VADER, LEXICON, FREQUENCY)
RECIPES = (
    TaskRecipe("adjective_polarity", FAMILY, "Adjective: {}\nLabel:", valences, "adj", "polarity", POLARITY),
    TaskRecipe("noun_polarity", FAMILY, "Noun: {}\nLabel:", valences, "noun", "polarity", POLARITY),
    TaskRecipe("verb_polarity", FAMILY, "Verb: {}\nLabel:", valences, "verb", "polarity", POLARITY),
    TaskRecipe(
        "feeling_strength", FAMILY, "Word: {}\nStrength of feeling:", valences, "word", "strength", (VADER, FREQUENCY)
    ),
    TaskRecipe("fact_or_opinion", FAMILY, "Adjective: {}\nKind:", subjectivities, "adj", "kind", (PATTERN, FREQUENCY)),
)

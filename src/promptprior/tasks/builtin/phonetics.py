"""How common English words sound."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator

from promptprior.tasks.builtin.common_words import FREQUENCY, LEXICON, is_common, lexicon
from promptprior.tasks.builtin.generator import Facts, Source, TaskRecipe

FAMILY = "phonetics"
SOUNDS = Source("misaki", "misaki", "Apache-2.0", "misaki's pronouncing dictionary of American English")

VOWEL = re.compile("[AIOWYaiuæ\u0251ɔəɛɜ\u026aʊʌᵊ]")
MAIN_STRESS = "\u02c8"
STRESS = re.compile("[\u02c8\u02cc]")
ORDINALS = ("first", "second", "third")


def pronunciations(within: int) -> Iterator[tuple[str, str]]:
    """Common lower-case words with one pronunciation, in misaki's IPA (capitals are diphthongs)."""
    for word, sounds in json.loads(SOUNDS.file("data", "us_gold.json").read_text(encoding="utf-8")).items():
        if isinstance(sounds, str) and word.islower() and word in lexicon() and is_common(word, within):
            yield word, sounds


def pronounced_words() -> Iterator[Facts]:
    """Words with their syllables (one to four vowels), the stressed one (of at least three syllables), and their c.

    A noun's article is decided by its first sound; a lone c is soft where the word has an s sound and no k.
    """
    for word, sounds in pronunciations(10000):
        row = {"word": word}
        vowels = len(VOWEL.findall(sounds))
        if 1 <= vowels <= 4:
            row["syllables"] = str(vowels)
        before = len(VOWEL.findall(sounds.split(MAIN_STRESS)[0]))
        if MAIN_STRESS in sounds and vowels >= 3 and before < len(ORDINALS):
            row["stressed"] = ORDINALS[before]
        if "noun" in lexicon()[word] and is_common(word):
            row["article"] = "an" if VOWEL.match(STRESS.sub("", sounds)) else "a"
        soft, hard = "s" in sounds, "k" in sounds
        if word.count("c") == 1 and not re.search("c[hk]|[skxq]", word) and soft != hard:
            row["c"] = "soft" if soft else "hard"
        yield row


def homophones() -> Iterator[Facts]:
    """Words that sound exactly like one other common word."""
    by_sound: dict[str, list[str]] = defaultdict(list)
    for word, sounds in sorted(pronunciations(20000)):
        by_sound[sounds].append(word)
    for sounds, group in sorted(by_sound.items()):
        if len(group) == 2:
            yield {"entity": sounds, "word": group[0], "same": group[1]}
            yield {"entity": sounds, "word": group[1], "same": group[0]}


SOURCES = (SOUNDS, LEXICON, FREQUENCY)
RECIPES = (
    TaskRecipe("syllable_count", FAMILY, "Word: {}\nSyllables:", pronounced_words, "word", "syllables", SOURCES),
    TaskRecipe(
        "stressed_syllable", FAMILY, "Word: {}\nStressed syllable:", pronounced_words, "word", "stressed", SOURCES
    ),
    TaskRecipe("article", FAMILY, "Noun: {}\nArticle:", pronounced_words, "word", "article", SOURCES),
    TaskRecipe("letter_c", FAMILY, "Word: {}\nLetter c is:", pronounced_words, "word", "c", SOURCES),
    TaskRecipe(
        "homophone", FAMILY, "Word: {}\nSounds like:", homophones, "word", "same", SOURCES, False, ("exact_match",)
    ),
)

"""A family of two tasks about letters, and the metric that the first of them is scored by."""

from collections.abc import Sequence
from itertools import product

from promptprior.tasks import Example, Split, Task
from promptprior.tasks.metrics import AnswerSet, Metric


def skill(answers: AnswerSet) -> float:
    """Accuracy as a share of what chance leaves: 0 for guessing, 1 for always right, -1 for always wrong of two."""
    chance = 1 / len(answers.classes)
    return (float((answers.labels == answers.guesses).mean()) - chance) / (1 - chance)


SKILL = Metric(skill, bounds=(-1.0, 1.0))

WORDS = tuple("".join(letters) for letters in product("aekmotu", "bni", "aos", "d"))  # abad ... uisd


def split(examples: Sequence[Example]) -> dict[Split, tuple[Example, ...]]:
    """Every other example to learn from, the rest for dev and test."""
    return {"train": tuple(examples[::2]), "validation": tuple(examples[1::4]), "test": tuple(examples[3::4])}


def vowels() -> Task:
    """Whether a word begins with a vowel."""
    choices = ("vowel", "other")
    labels = [int(word[0] not in "aeiou") for word in WORDS]
    examples = [
        Example(word, f"{word}:", choices[label], choices, label) for word, label in zip(WORDS, labels, strict=True)
    ]
    metrics = ("skill", "accuracy")
    return Task("outside_vowels", "multiple_choice", metrics, split(examples), "letters", label_names=choices)


def endings() -> Task:
    """The last letters of a word, as free text."""
    examples = [Example(word, f"{word}:", word[-2:], references=(word[-2:],)) for word in WORDS]
    return Task("outside_endings", "generate_until", ("exact_match",), split(examples), "letters", max_gen_toks=3)

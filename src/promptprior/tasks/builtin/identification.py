"""Which language a single word belongs to."""

from collections.abc import Iterator
from functools import partial

from promptprior.tasks.builtin.generator import Item, Recipe, Source

FAMILY = "identification"
LISTS = Source("mnemonic", "mnemonic", "MIT", "BIP-39 lists of common words")


def words(*languages: str) -> Iterator[Item]:
    """Words of several lists with their language; a word of two lists is dropped later as ambiguous."""
    for language in languages:
        for word in LISTS.file("wordlist", f"{language}.txt").read_text(encoding="utf-8").split():
            yield Item(word, word, (language.capitalize(),))


def recipe(name: str, *languages: str) -> Recipe:
    """Tell the words of some languages apart."""
    return Recipe(name, FAMILY, "Word: {}\nLanguage:", partial(words, *languages), (LISTS,))


RECIPES = (
    recipe("french_or_english", "french", "english"),
    recipe("spanish_or_italian", "spanish", "italian"),
    recipe("portuguese_or_french", "portuguese", "french"),
    recipe("czech_or_turkish", "czech", "turkish"),
    recipe("romance_language", "french", "italian", "portuguese", "spanish"),
    recipe("european_language", "czech", "english", "french", "italian", "spanish", "turkish"),
)

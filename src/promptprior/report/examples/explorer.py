"""Single test examples on the page: which are shown, and the data that explorer.js reads.

Texts are strangers': the page holds them as escaped JSON, and explorer.js sets them as text alone.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from promptprior.report.examples.kept_answers import KeptAnswers, spread
from promptprior.report.results import Grid
from promptprior.tasks.task import normalised

EMBEDDED = 250_000  # bytes of examples that a page holds unless a number of them is asked for: it stays under 2 MB
COUNTS = (100, 50, 25, 10, 5, 2, 1)  # examples of each target: the most that fit
# Control characters but tab and newline, and those that turn the direction of what follows: they hide or reorder text
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Explorer:
    """The data of the page's script, and how much of it there is.

    `counts` has, for each target, how many of its examples are shown and on how many its cells are scored; `answered`
    is the number of cells whose answers are shown.
    """

    data: dict[str, Any]
    counts: dict[str, tuple[int, int]]
    answered: int

    @property
    def size(self) -> int:
        """Bytes of the data in the page, nearly: < and & become a few more there."""
        return len(json.dumps(self.data, ensure_ascii=False).encode())


def explore(grid: Grid, kept: KeptAnswers, most: int | None = None) -> Explorer:
    """At most so many examples of each target with the answers of all its cells; by default as many as fit the page."""
    if most is not None:
        return embed(grid, kept, most)
    made = (embed(grid, kept, count) for count in COUNTS)
    return next(e for e in made if e.size <= EMBEDDED or max(shown for shown, _ in e.counts.values()) <= COUNTS[-1])


def embed(grid: Grid, kept: KeptAnswers, most: int) -> Explorer:
    """What the script is given.

    A target has texts, `golds` (numbers of `words`, in which every answer stands once) and cells. A cell has its
    method's number, k and seed. For each example it has the word answered, whether that is right (a digit of a text,
    "-" for not asked), and in percent the probabilities of answer and gold, which free text has not.
    """
    targets, counts, answered = list[dict[str, Any]](), dict[str, tuple[int, int]](), 0
    for target in grid.targets:
        rows = [row for row in grid.rows if row.target == target and row.cell in kept.cells]
        if not rows or not most:
            continue
        # Of several sets (another number was kept later) the one that most cells answered; of others what both hold.
        [(key, _)] = Counter(kept.cells[row.cell].examples for row in rows).most_common(1)
        shown = kept.sets[key]
        places = spread(len(shown.ids), most)
        words = dict[str, int]()
        golds = [[words.setdefault(visible(gold), len(words)) for gold in shown.golds[place]] for place in places]
        cells = []
        for row in rows:
            answers, own = kept.cells[row.cell], kept.sets[kept.cells[row.cell].examples]
            at = {(own.ids[i], own.texts[i]): i for i in range(len(own.ids))}
            given: list[int | None] = []
            right, shares, gold_shares = "", list[int | None](), list[int | None]()
            for place in places:
                i = at.get((shown.ids[place], shown.texts[place]))
                answer: int | str = "" if i is None else answers.answers[i]
                text = own.choices_of(i)[answer] if i is not None and isinstance(answer, int) else str(answer)
                given.append(None if i is None else words.setdefault(visible(text), len(words)))
                is_right = normalised(text) in map(normalised, shown.golds[place])
                if isinstance(answer, int):  # words that differ in case or signs may be two choices
                    is_right = text in shown.golds[place]
                right += "-" if i is None else str(int(is_right))
                for values, part in ((answers.probabilities, shares), (answers.gold_probabilities, gold_shares)):
                    part += [None if i is None else round(100 * values[i])] if values else []
            numbers = {"method": grid.methods.index(row.method), "k": row.k, "seed": row.seed}
            cells.append({**numbers, "given": given, "right": right, "shares": shares, "gold": gold_shares})
        texts = [visible(shown.texts[place]) for place in places]
        about = {"name": target, "isChoice": bool(shown.choices), "of": shown.n_test}
        targets.append({**about, "texts": texts, "golds": golds, "cells": cells, "words": list(words)})
        counts[target] = len(places), shown.n_test
        answered += len(rows)
    return Explorer({"methods": list(grid.methods), "targets": targets}, counts, answered)


def visible(text: str) -> str:
    """A text in which characters that would hide or reorder others are replacement characters.

    >>> visible("a\\x00b\\u202ec")
    'a\ufffdb\ufffdc'
    """
    return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))

"""What methods answered to single test examples, kept beside results.jsonl in a file of its own.

answers.jsonl has two kinds of lines: a set of examples (texts, gold answers, choices), once for a target, and the
answers of one cell to such a set. A line of answers is written before the row of its cell, so a row without answers is
older than them, or its folder keeps none. Of a cell that stands there twice the last line counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from promptprior.config.mapping import stable_hash
from promptprior.errors import DataError
from promptprior.files import read_lines
from promptprior.report.results import parse
from promptprior.tasks.metrics import Prediction
from promptprior.tasks.task import Example

LONGEST_TEXT, LONGEST_ANSWER = 2000, 300  # characters that are kept of a text, and of a gold or a given answer
ANSWER_BYTES = 40  # roughly, of one answer on disk
DIGITS = 4  # of a probability
MEND = "delete the file to report without single examples"


@dataclass(frozen=True)
class ExampleSet:
    """Some of the `n_test` examples that the cells of a target are scored on: evenly spaced, chosen by place alone.

    `golds` are the accepted answers of each. `choices` are those that are ranked: one list that holds for all examples,
    or a list for each; none for free text.
    """

    target: str
    n_test: int = field(metadata={"least": 1})
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    golds: tuple[tuple[str, ...], ...]
    choices: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, target: str, test: Sequence[Example], most: int) -> "ExampleSet":
        """At most so many of the test examples of a target; long texts are cut, with an ellipsis."""
        chosen = [test[i] for i in spread(len(test), most)]
        golds = [e.references or (e.target,) if e.label is None else (e.choices[e.label],) for e in chosen]
        choices = [tuple(cut(c, LONGEST_ANSWER) for c in e.choices) for e in chosen]
        return cls(
            target,
            len(test),
            tuple(e.id for e in chosen),
            tuple(cut(e.text, LONGEST_TEXT) for e in chosen),
            tuple(tuple(cut(g, LONGEST_ANSWER) for g in accepted) for accepted in golds),
            tuple(dict.fromkeys(choices) if len(set(choices)) == 1 else choices) if any(choices) else (),
        )

    @property
    def key(self) -> str:
        """The content hash that lines of answers name it by."""
        return stable_hash(asdict(self))

    def choices_of(self, place: int) -> tuple[str, ...]:
        """The ranked answers of the example at a place; () for free text."""
        return self.choices[0 if len(self.choices) == 1 else place] if self.choices else ()


@dataclass(frozen=True)
class CellAnswers:
    """What one cell answered to each example of the set named by its key.

    An answer is the place of a choice, or generated text. `probabilities` are those of the answers, and
    `gold_probabilities` those of the gold answers, among the choices; both are empty for free text.
    """

    cell: str
    examples: str
    answers: tuple[int | str, ...]
    probabilities: tuple[float, ...] = ()
    gold_probabilities: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, cell: str, test: Sequence[Example], predictions: Sequence[Prediction], kept: ExampleSet
    ) -> "CellAnswers":
        """The answers of a cell to the kept ones of its test examples, from its predictions on all of them."""
        places = spread(len(test), len(kept.ids))
        pairs = [(test[i], predictions[i]) for i in places]
        if not kept.choices:
            return cls(cell, kept.key, tuple(cut(p.text, LONGEST_ANSWER) for _, p in pairs))
        shares = [(p.probabilities, p.choice or 0, e.label or 0) for e, p in pairs]
        return cls(
            cell,
            kept.key,
            tuple(choice for _, choice, _ in shares),
            tuple(round(of_choices[choice], DIGITS) for of_choices, choice, _ in shares),
            tuple(round(of_choices[label], DIGITS) for of_choices, _, label in shares),
        )


@dataclass(frozen=True)
class KeptAnswers:
    """All that folders of results keep: example sets by key, and answers by cell."""

    sets: Mapping[str, ExampleSet]
    cells: Mapping[str, CellAnswers]


def example_line(examples: ExampleSet) -> dict[str, Any]:
    """The line of a set of examples."""
    return {"key": examples.key, **asdict(examples)}


def read_answers(*paths: Path) -> KeptAnswers:
    """What files of answers hold; a missing file holds nothing. Raises DataError naming what is malformed."""
    sets, cells = dict[str, ExampleSet](), dict[str, CellAnswers]()
    for path in paths:
        for i, line in enumerate(read_lines(path), start=1):
            where = f"{path}, line {i}"
            if not isinstance(line, dict) or "cell" not in line:
                key = line.pop("key", None) if isinstance(line, dict) else None
                examples = parse(ExampleSet, line, where)
                count = len(examples.ids)
                lengths = [examples.texts, examples.golds, *([examples.choices] if len(examples.choices) > 1 else [])]
                if not count or any(len(values) != count for values in lengths) or not all(examples.golds):
                    raise DataError(f"{where}: {count} ids; expected a text, gold answers and choices for each; {MEND}")
                sets[str(key)] = examples
                continue
            answers = parse(CellAnswers, line, where)
            kept = sets.get(answers.examples)
            if kept is None:
                raise DataError(f"{where}: no earlier line has the examples {answers.examples!r}; {MEND}")
            problem, count = "", len(kept.ids)
            shares = [values for values in (answers.probabilities, answers.gold_probabilities) if values]
            if any(len(values) != count for values in (answers.answers, *shares)):
                problem = f"{len(answers.answers)} answers to {count} examples"
            elif any(not 0 <= share <= 1 for values in shares for share in values):
                problem = "a probability outside 0 to 1"
            for place, answer in enumerate(answers.answers if not problem else ()):
                choices = kept.choices_of(place)
                if not (0 <= answer < len(choices) if isinstance(answer, int) else not choices):
                    problem = f"answer {answer!r} is none of {len(choices)} choices"
            if problem:
                raise DataError(f"{where}: {problem}; {MEND}")
            cells[answers.cell] = answers
    return KeptAnswers(sets, cells)


def spread(count: int, most: int) -> list[int]:
    """At most so many places of a sequence, evenly spaced: files are often sorted by class.

    >>> spread(10, 3), spread(2, 3)
    ([0, 3, 6], [0, 1])
    """
    most = min(count, most)
    return [i * count // most for i in range(most)]


def cut(text: str, longest: int) -> str:
    """A text that is written as UTF-8, cut where it is longer than so many characters."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= longest else f"{text[: longest - 1]}…"

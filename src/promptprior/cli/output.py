"""What verbs print. Needs no torch."""

import shlex
import sys
from collections.abc import Mapping, Sequence


def command_line() -> str:
    """The command that this process was started with."""
    return shlex.join(["promptprior", *sys.argv[1:]])


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns under their heads.

    >>> print(format_table(["a", "bb"], [["xxx", "y"]]))
    a    bb
    xxx  y
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in [head, *rows])
    return "\n".join(line.rstrip() for line in lines)


def score_lines(scores: Mapping[str, float], of: str = "") -> str:
    """Scores by name, a line each; `of` says what they are means of."""
    width = max(map(len, scores), default=0)
    return "\n".join(f"{name:{width}}  {value:.4f}  {of}".rstrip() for name, value in scores.items())

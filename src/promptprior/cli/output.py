"""What verbs print, and the settings they keep beside what they write. Needs no torch."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from promptprior.config.mapping import dump_yaml
from promptprior.files import write_text


def save_plan(plan: Any, path: Path) -> None:
    """Write the resolved settings of a verb as a plan file that can be given back to the command."""
    write_text(path, dump_yaml(plan))


def plan_beside(output: Path) -> Path:
    """Where the plan of an output that is one file or artifact is kept."""
    return output.with_name(f"{output.name}.plan.yaml")


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


def score_lines(scores: Mapping[str, float]) -> str:
    """Scores by name, a line each."""
    width = max(map(len, scores), default=0)
    return "\n".join(f"{name:{width}}  {value:.4f}" for name, value in scores.items())

"""What verbs print, and the settings they keep beside what they write. Needs no torch."""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from promptprior.config.mapping import dump_yaml
from promptprior.errors import PromptpriorWarning
from promptprior.files import write_text

# What other libraries read when they are imported, which is later; a user who sets one is not overruled
SILENCE = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' bars too
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}


@contextmanager
def only_own_lines(debug: bool = False) -> Iterator[None]:
    """Keep what other libraries log, warn of or draw from our lines; our own warnings are a line each on stderr.

    With `debug` everything is shown as Python shows it.
    """
    if debug:
        yield
        return
    for name, value in SILENCE.items():
        os.environ.setdefault(name, value)
    silent = logging.NullHandler()  # while the root has no handler at all, Python prints what libraries log
    with warnings.catch_warnings():
        warnings.showwarning = _show_own_warning  # filters would not do: libraries add filters of their own
        logging.getLogger().addHandler(silent)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(silent)


def _show_own_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if issubclass(category, PromptpriorWarning):
        print(f"promptprior: warning: {message}", file=sys.stderr, flush=True)


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

"""What verbs print. Needs no torch."""

import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

from promptprior.errors import QUIET, PromptpriorWarning, is_quiet

# What other libraries read when they are imported, which is later; a user who sets one is not overruled
SILENCE = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' bars too
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
}


AS_JSON = ContextVar("AS_JSON", default=False)  # whether `show` prints JSON


def show(text: str, report: object) -> None:
    """Print what a verb found: the text, or with --json the report as one line of JSON."""
    print(json.dumps(report, default=str) if AS_JSON.get() else text)  # in ASCII, which every terminal can show


@contextmanager
def only_own_lines(debug: bool = False, quiet: bool = False) -> Iterator[None]:
    """Keep what other libraries log, warn of or draw from our lines; our own warnings are a line each on stderr.

    With `debug` everything is shown as Python shows it, with `quiet` no warning and no progress.
    """
    with ExitStack() as stack:
        if quiet and not is_quiet():
            os.environ[QUIET] = "1"
            stack.callback(os.environ.pop, QUIET, None)
        if debug:
            yield
            return
        for name, value in SILENCE.items():
            os.environ.setdefault(name, value)

        def show_own_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
            if issubclass(category, PromptpriorWarning) and not is_quiet():
                print(f"promptprior: warning: {message}", file=sys.stderr, flush=True)

        silent = logging.NullHandler()  # while the root has no handler at all, Python prints what libraries log
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = show_own_warning  # filters would not do: libraries add filters of their own
        logging.getLogger().addHandler(silent)
        stack.callback(logging.getLogger().removeHandler, silent)
        yield


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


def score_lines(scores: Mapping[str, float], of: str = "", rows: int = 0) -> str:
    """Scores by name, a line each; `of` says what they are means of. An accuracy of so many `rows` has its interval."""
    from promptprior.tasks.metrics import wilson_interval

    lines = []
    width = max(map(len, scores), default=0)
    for name, value in scores.items():
        between = ""
        if rows and name.removeprefix("test ") == "accuracy":
            low, high = wilson_interval(value, rows)
            between = f" (95% interval {low:.3f} to {high:.3f})"
        lines.append(f"{name:{width}}  {value:.4f}{between}  {of}".rstrip())
    return "\n".join(lines)

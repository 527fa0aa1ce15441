"""Errors that name the value, what was expected, and what to change."""

import os
from collections.abc import Iterable
from difflib import get_close_matches

QUIET = "PROMPTPRIOR_QUIET"  # a variable of the environment: no progress, notes or warnings (--quiet sets it)


def is_quiet() -> bool:
    """Whether nothing but results and errors is to be said."""
    return bool(os.environ.get(QUIET))


class PromptpriorError(Exception):
    """Base of every error this library raises on purpose; the command line prints it and exits 2."""


class SpecError(PromptpriorError):
    """A task spec, config file or flag says something impossible."""


class DataError(PromptpriorError):
    """Rows of a data set do not fit their task spec."""


class InputError(DataError, ValueError):
    """What an estimator was given does not fit; scikit-learn's callers expect a ValueError."""


class ArtifactError(PromptpriorError):
    """A saved prior or prompt is damaged or belongs to another backbone."""


class DiskError(ArtifactError):
    """A file cannot be written: no room, no permission. It stops a comparison: every other cell would fail too."""


class TrainingError(PromptpriorError):
    """Training cannot go on: a loss that is not finite, a step that moves nothing."""


class PromptpriorWarning(UserWarning):
    """What this library warns of: work goes on, in another way than was asked for; the command line prints it."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence for an unknown name, with the nearest known names.

    >>> unknown_name("method", "spott", ["spot", "multitask"])
    "unknown method 'spott'; did you mean 'spot'? (known: multitask, spot)"
    """
    names = sorted(known)
    bare = {known_name.lstrip("-"): known_name for known_name in names}  # flags are not alike for their dashes
    near = [bare[each] for each in get_close_matches(name.lstrip("-"), bare, n=3, cutoff=0.5)]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ";"
    listed = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
    return f"unknown {kind} {name!r}{hint} (known: {listed})"

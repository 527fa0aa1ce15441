"""Verbs in several processes, as torchrun and accelerate start them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from promptprior.cli.verb import Verb
from promptprior.errors import SpecError


@contextmanager
def all_processes(verb: Verb) -> Iterator[None]:
    """Work with the other processes of this job, if there are any; only the first one prints.

    Raises SpecError for a verb whose work is not split.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started == 1:
        yield
        return
    if not verb.is_parallel:
        raise SpecError(
            f"{verb.name} runs in one process, and this job has {started} (WORLD_SIZE): start it without torchrun or "
            "accelerate; fit, adapt, evaluate and predict can be split"
        )
    from promptprior.processes import is_first, process_group

    with process_group(), open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_first() else nowhere):
        yield

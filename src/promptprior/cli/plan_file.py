"""Settings kept beside results, as a plan file that can be given back to the command."""

import shlex
import sys
from pathlib import Path
from typing import Any

from promptprior.config.mapping import dump_yaml


def save_plan(plan: Any, path: Path) -> None:
    """Write the resolved settings of a verb."""
    from promptprior.files import write_text

    write_text(path, dump_yaml(plan))


def beside(output: Path) -> Path:
    """Where the plan of an output that is one file or artifact is kept."""
    return output.with_name(output.name + ".plan.yaml")


def command_line() -> str:
    """The command that this process was started with."""
    return shlex.join(["promptprior", *sys.argv[1:]])

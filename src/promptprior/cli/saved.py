"""Settings kept beside results, as a plan file that can be given back to the command."""

import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from promptprior.config import RESOLVERS, to_mapping


class Writer(yaml.SafeDumper):
    """YAML by the rules that `load_yaml` reads."""

    yaml_implicit_resolvers = RESOLVERS


def save_plan(plan: Any, path: Path) -> None:
    """Write the resolved settings of a verb."""
    from promptprior.files import write_text

    text = yaml.dump(to_mapping(plan), Dumper=Writer, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_text(path, text)


def beside(output: Path) -> Path:
    """Where the plan of an output that is a folder of its own, or a file, is kept."""
    return output.with_name(output.name + ".plan.yaml")


def command_line() -> str:
    """The command that this process was started with."""
    return shlex.join(["promptprior", *sys.argv[1:]])

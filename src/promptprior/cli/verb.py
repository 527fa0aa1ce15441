"""What a verb is: settings, an example, and the one function it calls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptprior.config.mapping import Config

PLAN_FILE = "PLAN.yaml"


@dataclass(frozen=True)
class Verb:
    """A verb. `positional` names the settings that may be given without a flag, or PLAN_FILE.

    `run` is told the settings and whether to only say what it would do; `defaults` completes what was given, from the
    artifact that the settings name. `is_parallel`: whether torchrun may start it in several processes.
    `presets` is a folder of plan files that `--preset` names.
    """

    name: str
    settings: type[Config]
    run: Callable[[Any, bool], None]
    example: str
    positional: tuple[str, ...] = (PLAN_FILE,)
    defaults: Callable[[Mapping[str, object]], dict[str, object]] = dict
    is_parallel: bool = False
    presets: Path | None = None

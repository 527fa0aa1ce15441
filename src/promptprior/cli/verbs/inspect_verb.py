"""promptprior inspect: what an artifact folder holds."""

from dataclasses import dataclass, field
from pathlib import Path

from promptprior.cli.verb import Verb


@dataclass(frozen=True)
class InspectPlan:
    """The settings of `promptprior inspect`."""

    folder: Path = field(metadata={"help": "folder of a prior or prompt"})

    def run(self, dry_run: bool) -> None:  # noqa: ARG002 - reading costs nothing
        """Check a folder and print its page."""
        from promptprior.artifacts.inspect import inspect_artifact
        from promptprior.cli.common import artifact_folder

        print(inspect_artifact(artifact_folder(self.folder)), end="")


VERB = Verb("inspect", InspectPlan, InspectPlan.run, "promptprior inspect runs/prompt", positional=("folder",))

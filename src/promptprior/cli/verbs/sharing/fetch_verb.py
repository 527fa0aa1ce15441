"""promptprior fetch: a prior, a prompt or results from the Hugging Face Hub, of one commit."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from promptprior.cli.output import show
from promptprior.cli.verb import FORCE, Verb
from promptprior.config.plan_file import check_output, plan_beside, save_plan
from promptprior.config.training import setting


@dataclass(frozen=True)
class FetchPlan:
    """The settings of `promptprior fetch`."""

    repo: str = field(metadata={"help": "repository of the Hub: OWNER/NAME"})
    revision: str | None = setting(None, "commit, tag or branch; by default what main is now (the plan has its commit)")
    kind: Literal["artifact", "results"] = setting("artifact", "artifact (a prior or prompt), or results")
    output: Path = setting(Path("runs/fetched"), "folder for it")
    force: bool = setting(False, FORCE)

    def run(self, dry_run: bool) -> None:
        """Download the files of one commit, check them, and say what they are."""
        from promptprior.artifacts.artifact import load_any
        from promptprior.artifacts.hub import fetch_folder
        from promptprior.files import replace_folder
        from promptprior.report.results import read_rows

        check_output(self.output, "fetch", force=self.force)
        if dry_run:
            return print(f"fetch {self.repo} at {self.revision or 'main'} to {self.output}")
        said = []

        def write(target: Path) -> None:
            commit = fetch_folder(self.repo, target, "model" if self.kind == "artifact" else "dataset", self.revision)
            if self.kind == "results":
                said.append((commit, f"{len(read_rows(target / 'results.jsonl'))} rows"))
            else:
                header = load_any(target).header
                said.append((commit, f"{header.kind} of {header.method} for {header.backbone.name}"))

        replace_folder(self.output, write)
        [(commit, what)] = said
        save_plan(replace(self, revision=commit), plan_beside(self.output), "fetch", [self.output])
        said_of = {"output": self.output, "repo": self.repo, "commit": commit, "what": what}
        return show(f"{what}, {self.repo} at {commit}\n{self.output}", said_of)


VERB = Verb(
    "fetch",
    FetchPlan,
    FetchPlan.run,
    "promptprior fetch OWNER/NAME --output runs/theirs",
    positional=("repo",),
)

"""promptprior share: a prior, a prompt or results, to the Hugging Face Hub."""

from dataclasses import dataclass, field
from pathlib import Path

from promptprior.cli.output import show
from promptprior.cli.verb import Verb
from promptprior.config.comparison_folder import RESULTS
from promptprior.config.training import setting

CARD = """---
license: other
license_name: of-the-tasks-and-the-backbone
tags:
- promptprior
- soft-prompt
---

# Results of promptprior

One line of `results.jsonl` is what one method scored on one target, with its settings, seeds, cost and versions.

```bash
promptprior fetch {repo} --kind results --output theirs
promptprior leaderboard theirs
```
"""


@dataclass(frozen=True)
class SharePlan:
    """The settings of `promptprior share`."""

    folder: Path = field(metadata={"help": "what fit, adapt or compare wrote: a prior, a prompt, or results"})
    repo: str = field(metadata={"help": "repository of the Hub: OWNER/NAME; it is made where it is not there"})
    private: bool | None = setting(None, "whether only you see it; by default as your account makes repositories")
    license: str | None = setting(None, "licence for the card (apache-2.0, cc-by-4.0, …); by default other")
    widget: tuple[str, ...] = setting((), "texts that the card shows as examples; none of yours are shared unasked")

    def run(self, dry_run: bool) -> None:
        """Check the folder, commit what may be shared of it, and say where it is."""
        from tempfile import TemporaryDirectory

        from promptprior.artifacts.artifact import artifact_folder, load_any
        from promptprior.artifacts.hub import README, SHARED, push_folder
        from promptprior.files import read_bytes, write_bytes
        from promptprior.report.results import read_rows

        if (self.folder / RESULTS).is_file():
            rows = read_rows(self.folder / RESULTS)
            if dry_run:
                return print(f"share {len(rows)} rows of {self.folder} as the data set {self.repo}")
            with TemporaryDirectory() as temporary:
                for name in SHARED["dataset"]:
                    if (self.folder / name).is_file():
                        write_bytes(Path(temporary) / name, read_bytes(self.folder / name))
                if not (self.folder / README).is_file():
                    write_bytes(Path(temporary) / README, CARD.format(repo=self.repo).encode())
                commit = push_folder(Path(temporary), self.repo, "dataset", self.private, self.license)
        else:
            artifact = load_any(artifact_folder(self.folder))
            if dry_run:
                return print(f"share the {artifact.kind} of {self.folder} as the model {self.repo}")
            commit = artifact.push_to_hub(self.repo, self.private, self.license, self.widget)
        return show(f"{self.repo} at {commit}", {"repo": self.repo, "commit": commit})


VERB = Verb(
    "share",
    SharePlan,
    SharePlan.run,
    "promptprior share runs/prompt --repo OWNER/NAME",
    positional=("folder",),
)

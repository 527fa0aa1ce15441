"""promptprior leaderboard: results of many people on one page."""

from dataclasses import dataclass, field
from pathlib import Path

from promptprior.cli.output import command_line, show
from promptprior.cli.verb import FORCE, Verb
from promptprior.config.plan_file import check_output, plan_beside, write_outputs
from promptprior.config.training import setting
from promptprior.errors import SpecError


@dataclass(frozen=True)
class LeaderboardPlan:
    """The settings of `promptprior leaderboard`."""

    results: tuple[str, ...] = field(
        metadata={"help": "folders of results, or of such folders: runs/a,ann=runs/b; the name is what a page shows"}
    )
    output: Path = setting(Path("leaderboard.html"), "the page")
    title: str = setting("promptprior leaderboard", "heading of the page")
    baseline: str = setting("prompt_tuning", "method that the others are compared with, of whoever ran it first")
    force: bool = setting(False, FORCE)

    def run(self, dry_run: bool) -> None:
        """Read everybody's rows and write the page."""
        from promptprior.report.leaderboard import Entry, make_leaderboard

        if not self.results:
            raise SpecError("results is missing: name a folder that compare wrote, or one of such folders")
        entries = [entry for named in self.results for entry in Entry.read(named)]
        files = [entry.file for entry in entries]
        check_output(self.output, "leaderboard", files, force=self.force)
        if dry_run:
            return print(f"read {', '.join(map(str, files))}, write {self.output}")
        board = make_leaderboard(entries, self.title, self.baseline, command_line())
        write_outputs(self, plan_beside(self.output), "leaderboard", {self.output: board.write_page})
        return show(str(self.output), {"output": self.output})


VERB = Verb(
    "leaderboard",
    LeaderboardPlan,
    LeaderboardPlan.run,
    "promptprior leaderboard runs/first,ann=downloads/theirs --output leaderboard.html",
    positional=("results",),
)

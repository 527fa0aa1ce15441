"""promptprior tasks: list what there is, show one task, check a spec or a data folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from promptprior.cli.output import format_table, show
from promptprior.cli.verb import DATA, Verb
from promptprior.config.training import setting
from promptprior.errors import DataError, PromptpriorError, SpecError
from promptprior.untrusted import path_kind


@dataclass(frozen=True)
class TasksPlan:
    """The settings of `promptprior tasks`."""

    action: Literal["list", "show", "check"] = setting("list", "list, show NAME, or check SPEC_OR_FOLDER")
    name: str = setting("", "the task to show, or the spec, data file or folder to check")
    data: Path | None = setting(None, DATA)
    family: str = setting("", "list only this family")

    def __post_init__(self) -> None:
        if self.action != "list" and not self.name:
            raise SpecError(f"tasks {self.action} needs one more word: {self.action} NAME")

    def run(self, dry_run: bool) -> None:  # noqa: ARG002 - reading costs nothing
        """List, show or check. Raises SpecError for a family without tasks, DataError where a check fails."""
        from promptprior.tasks import available, check_task, load_task
        from promptprior.tasks.loading.load import folders, split_files

        if self.action == "show":
            task = load_task(self.name, self.data)
            answers = ", ".join(task.label_names) or ("choices of each example" if task.is_choice else "free text")
            sizes = {name: len(split) for name, split in task.examples.items()}
            lines = [
                f"{task.name}  family {task.family}  version {task.version}  fingerprint {task.fingerprint}",
                f"metrics   {', '.join(task.metrics)}",
                f"answers   {answers}",
                f"examples  {', '.join(f'{name} {size}' for name, size in sizes.items())}",
                f"from      {task.origin}",
                f"licence   {task.licence or 'not stated'}",
            ]
            shown = task.split("train")[:2]  # as the model reads them
            lines += [f"\n{example.text}[{task.target_delimiter}{example.target}]" for example in shown]
            named = ("name", "family", "version", "fingerprint", "output_type", "metrics", "label_names", "origin")
            said = {name: getattr(task, name) for name in (*named, "licence", "path")}
            show("\n".join(lines), {**said, "examples": sizes, "shown": [asdict(example) for example in shown]})
        elif self.action == "check":  # one task, or every task folder in a folder
            path, names, bad, found = Path(self.name), [self.name], [], dict[str, list[str]]()
            is_folder = path_kind(path) == "folder"
            if is_folder and not split_files(path) and not list(path.glob("*.y*ml")) and folders(path):
                names = [str(path / name) for name in folders(path)]
            for name in names:
                try:
                    task = load_task(Path(name) if path_kind(Path(name)) else name, self.data)
                    sizes_text = ", ".join(f"{split} {len(examples)}" for split, examples in task.examples.items())
                    warned = [f"warning: {problem.message}" for problem in check_task(task)]
                    found[name] = [f"ok     {name}", sizes_text, *warned]
                except PromptpriorError as error:
                    bad.append(name)
                    found[name] = [f"error  {name}", str(error)]
            checked = [{"task": n, "ok": n not in bad, "says": lines[1:]} for n, lines in found.items()]
            show("\n".join("\n       ".join(lines) for lines in found.values()), checked)
            if bad:
                raise DataError(f"{len(bad)} of {len(names)} cannot be used: {', '.join(bad[:10])}")
        else:
            cards = [card for card in available(self.data) if self.family in ("", card.family)]
            if not cards:
                raise SpecError(f"no task of family {self.family!r} (--family)")
            forms = {"generate_until": "free text", "multiple_choice": "choice"}
            rows = [[c.name, c.source, c.family, forms[c.output_type], ",".join(c.metrics)] for c in cards]
            show(format_table(["task", "from", "family", "answer", "metrics"], rows), [asdict(card) for card in cards])


VERB = Verb("tasks", TasksPlan, TasksPlan.run, "promptprior tasks list --data DIR", positional=("action", "name"))

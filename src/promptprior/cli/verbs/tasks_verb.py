"""promptprior tasks: list what there is, show one task, check a spec or a data folder, write a task for lm-eval."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from promptprior.cli.output import format_table, show
from promptprior.cli.verb import DATA, FORCE, Verb
from promptprior.config.plan_file import check_output, plan_beside, save_plan
from promptprior.config.training import setting
from promptprior.errors import DataError, PromptpriorError, SpecError
from promptprior.untrusted import path_kind


@dataclass(frozen=True)
class TasksPlan:
    """The settings of `promptprior tasks`."""

    action: Literal["list", "show", "check", "export"] = setting(
        "list", "list, show NAME, check SPEC_OR_FOLDER, or export NAME (for lm-evaluation-harness)"
    )
    name: str = setting("", "the task to show or export, or the spec, data file or folder to check")
    data: Path | None = setting(None, DATA)
    family: str = setting("", "list only this family")
    output: Path | None = setting(None, "export: folder for the task's YAML file and rows")
    force: bool = setting(False, FORCE)

    def __post_init__(self) -> None:
        if self.action != "list" and not self.name:
            raise SpecError(f"tasks {self.action} needs one more word: {self.action} NAME")
        if self.action == "export" and self.output is None:
            raise SpecError("tasks export writes files: name a folder for them (--output)")

    def run(self, dry_run: bool) -> None:
        """List, show, check or export. Raises SpecError for a family without tasks, and for a task that lm-eval would
        score differently; DataError where a check fails."""
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
        elif self.action == "export":
            from promptprior.tasks import write_lm_eval

            assert self.output is not None  # __post_init__
            check_output(self.output, "tasks", (self.name, self.data), force=self.force)
            task = load_task(self.name, self.data)
            sizes = {name: len(split) for name, split in task.examples.items()}
            if dry_run:
                print(f"write spec.yaml and {', '.join(f'{s}.jsonl ({n})' for s, n in sizes.items())}")
                return
            path = write_lm_eval(task, self.output)
            save_plan(self, plan_beside(self.output), "tasks", [self.output])
            show(str(path), {"output": path, "task": task.name, "examples": sizes})
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

"""Plans beside outputs: the settings that made them, and the record of what may be written there again.

A saved plan begins with comments, which name its command and the files that it wrote with their SHA-256:

    # written by promptprior predict
    # wrote answers.csv 0123456789abcdef…

A command replaces a file that it wrote itself and that is unchanged since then. It replaces any other file only with
--force, and never what it reads.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from promptprior.config.mapping import dump_yaml
from promptprior.errors import ArtifactError
from promptprior.files import write_text

WRITTEN_BY = "# written by promptprior "
WROTE = "# wrote "


def plan_beside(output: Path) -> Path:
    """Where the plan of an output that is one file or artifact is kept."""
    return output.with_name(f"{output.name}.plan.yaml")


def save_plan(plan: Any, path: Path, command: str, outputs: Iterable[Path] = ()) -> None:
    """Write the resolved settings of a command as a plan file that can be given back to it.

    `outputs` are the files and folders that it wrote, recorded for `check_output`.
    """
    if is_dataclass(plan) and getattr(plan, "force", False):  # a plan that is given back must not force anything
        plan = replace(plan, force=False)  # type: ignore[type-var]
    lines = [WRITTEN_BY + command]
    lines += [f"{WROTE}{_name_in(file, path)} {_digest(file)}" for output in outputs for file in _files_of(output)]
    write_text(path, "\n".join(lines) + "\n" + dump_yaml(plan))


def is_plan_of(path: Path, command: str) -> bool:
    """Whether a file is a plan that the command saved."""
    return bool(lines := _comments(path)) and lines[0] == WRITTEN_BY + command


def check_output(
    output: Path,
    command: str,
    inputs: Iterable[Path | str | None] = (),
    *,
    flag: str = "--output",
    force: bool | None = False,
    is_own: bool = False,
) -> None:
    """Raise ArtifactError when writing a file or folder would destroy what the command did not write itself.

    Call it before any work. `inputs` are what the command reads: they are never replaced, even with `force`. `is_own`
    says that the output tells by itself that the command wrote it, as an artifact with its header does; otherwise the
    plan beside it must. `force` is None for a command that has no such flag.
    """
    where, advice = (
        f"{output} ({flag})",
        "choose another path" + (", or give --force to replace it" * (force is not None)),
    )
    if not output.name or output.name == "..":
        raise ArtifactError(f"{where}: expected the name of a new file or folder")
    files, target = _files_of(output), output.resolve()
    sources = [Path(source).resolve() for source in inputs if source is not None and Path(source).exists()]
    for source in sources:
        if source == target or target in source.parents:
            raise ArtifactError(f"{where}: promptprior {command} reads {source} there; choose another path")
    plan = plan_beside(output)
    records = [line.removeprefix(WROTE).rpartition(" ") for line in _comments(plan) if is_plan_of(plan, command)]
    digests = {name: digest for name, _, digest in records}
    changed = (f for f in files if _name_in(f, plan) not in digests or digests[_name_in(f, plan)] != _digest(f))
    if not is_own and (stranger := next(changed, None)) is not None:
        if any(source in target.parents for source in sources):
            raise ArtifactError(f"{where}: exists in what promptprior {command} reads; choose another path")
        if not force:
            raise ArtifactError(
                f"{where}: {stranger} exists, and is not what promptprior {command} wrote there; {advice}"
            )
    if plan.exists() and not (force or is_own or is_plan_of(plan, command)):
        raise ArtifactError(
            f"{where}: its settings would replace {plan}, which promptprior {command} did not write; {advice}"
        )


def _files_of(output: Path) -> list[Path]:
    # An output that is one file, or all files of a folder.
    return (
        sorted(path for path in output.rglob("*") if path.is_file()) if output.is_dir() else [output] * output.exists()
    )


def _name_in(file: Path, plan: Path) -> str:
    return file.relative_to(plan.parent).as_posix()


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read: {error.strerror or error}") from error


def _comments(path: Path) -> list[str]:
    # The comment lines that a file begins with; none where there is no such text file.
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                if not line.startswith("#"):
                    break
                lines.append(line.rstrip("\n"))
    except (OSError, UnicodeDecodeError):
        return []
    return lines

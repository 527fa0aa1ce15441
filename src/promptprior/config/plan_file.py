"""Plans beside outputs: the settings that made them, and the record of what may be written there again.

A saved plan begins with comments, which name its command and the files that it wrote with their SHA-256:

    # written by promptprior predict
    # wrote answers.csv 0123456789abcdef…

A command replaces a file that it wrote itself and that is unchanged since then. It replaces any other file only with
--force, and never what it reads.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from promptprior.config.mapping import to_mapping
from promptprior.config.yaml_file import to_yaml
from promptprior.errors import ArtifactError
from promptprior.files import write_text, write_together

WRITTEN_BY = "# written by promptprior "
WROTE = "# wrote "


def plan_beside(output: Path) -> Path:
    """Where the plan of an output that is one file or artifact is kept."""
    return output.with_name(f"{output.name}.plan.yaml")


def save_plan(plan: Any, path: Path, command: str, outputs: Iterable[Path] = ()) -> None:
    """Write the resolved settings of a command as a plan file that can be given back to it.

    `outputs` are the files and folders that it wrote, recorded for `check_output`.
    """
    _write_plan(plan, path, command, {n: [value] for out in outputs for n, value in _digests(out, path.parent).items()})


def _write_plan(plan: Any, path: Path, command: str, digests: Mapping[str, Sequence[str]]) -> None:
    if is_dataclass(plan) and getattr(plan, "force", False):  # a plan that is given back must not force anything
        plan = replace(plan, force=False)  # type: ignore[type-var]
    wrote = [f"{WROTE}{name} {value}" for name, values in digests.items() for value in values]
    write_text(path, "\n".join([WRITTEN_BY + command, *wrote]) + "\n" + to_yaml(to_mapping(plan)))


def write_outputs(plan: Any, path: Path, command: str, writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write the files of a command, each by its writer, and their plan.

    The plan comes first, with the digests of the files that stand there and of those to come: whenever the process
    dies, the same command knows all of them as its own.
    """
    digests, both = dict[str, list[str]](), dict[str, list[str]]()
    with write_together(writers) as partials:
        known = _recorded(path, command)
        for output, partial in partials.items():
            name = output.relative_to(path.parent).as_posix()
            standing = _digests(output, path.parent, known).get(name)
            digests[name] = list(_digests(partial, partial.parent).values())
            both[name] = digests[name] + [value for value in known.get(name, ()) if value == standing]
        _write_plan(plan, path, command, both)
    if both != digests:
        _write_plan(plan, path, command, digests)


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
    plan beside it must, or the one beside its folder. `force` is None for a command that has no such flag.
    """
    where = f"{output} ({flag})"
    advice = "choose another path" if force is None else "choose another path, or give --force to replace it"
    if not output.name or output.name == "..":
        raise ArtifactError(f"{where}: expected the name of a new file or folder")
    target = output.resolve()
    sources = [Path(source).resolve() for source in inputs if source is not None and os.path.exists(source)]
    for source in sources:
        if source == target or target in source.parents:
            raise ArtifactError(f"{where}: promptprior {command} reads {source} there; choose another path")
    above = [output.parent] if output.parent.name not in ("", "..") else []
    plans = [plan_beside(path) for path in (output, *above)]
    plan = next((path for path in plans if is_plan_of(path, command)), plans[0])
    own = _recorded(plan, command)
    digests = {} if is_own else _digests(output, plan.parent, own)
    if changed := [name for name, value in digests.items() if value not in own.get(name, ())]:
        if any(source in target.parents for source in sources):
            raise ArtifactError(f"{where}: exists in what promptprior {command} reads; choose another path")
        if not force:
            stranger = plan.parent / changed[0]
            raise ArtifactError(f"{where}: {stranger} exists and is not what promptprior {command} wrote; {advice}")
    if os.path.exists(plan) and not (force or is_own or is_plan_of(plan, command)):
        raise ArtifactError(
            f"{where}: its settings would replace {plan}, which promptprior {command} did not write; {advice}"
        )


def _recorded(path: Path, command: str) -> dict[str, list[str]]:
    # The digests by the names of the files that the command's plan at a path says it wrote.
    own: dict[str, list[str]] = {}
    for line in _comments(path) if is_plan_of(path, command) else ():
        name, _, value = line.removeprefix(WROTE).rpartition(" ")
        own.setdefault(name, []).append(value)
    return own


def _digests(output: Path, folder: Path, names: Collection[str] | None = None) -> dict[str, str]:
    # The SHA-256 of an output that is one file, or of all files below a folder, by their names in `folder`. Where
    # `names` are given, other files are not read: a base model in the way is refused at once.
    digests = {}
    files = sorted(output.rglob("*")) if os.path.isdir(output) else [output]
    for file in filter(os.path.isfile, files):
        name = file.relative_to(folder).as_posix()
        if names is not None and name not in names:
            digests[name] = ""
            continue
        try:
            with file.open("rb") as stream:
                digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise ArtifactError(f"{file}: cannot be read: {error.strerror or error}") from error
    return digests


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

"""What several verbs build from their settings before they call the library."""

from collections.abc import Mapping
from pathlib import Path

from promptprior.artifacts.artifact import is_foreign
from promptprior.artifacts.header import HEADER_FILE, Header, read_header
from promptprior.backbone import Backbone
from promptprior.compare.cost_estimate import tokens_per_second
from promptprior.compare.plan import load_backbone
from promptprior.compare.progress import duration, watch_steps
from promptprior.errors import ArtifactError
from promptprior.tasks import Task
from promptprior.watch import WatchStage, combine_watchers, tensorboard


def watcher(label: str, folder: Path | None) -> WatchStage:
    """Lines of progress, and TensorBoard where a folder is given. Raises SpecError when its package is missing."""
    lines = watch_steps(label)
    return lines if folder is None else combine_watchers([lines, tensorboard(folder)])


def cost_line(backbone: Backbone, task: Task, length: int, tokens: float) -> str:
    """Tokens, and the time they take here, measured on two small steps."""
    pace = tokens_per_second(backbone, task, length)
    return f"about {tokens:,.0f} tokens, {duration(tokens / pace)} at {pace:,.0f} tokens a second"


def artifact_folder(path: Path) -> Path:
    """A prior's or prompt's folder; what fit wrote holds it as prior/."""
    inside = path / "prior"
    return inside if not (path / HEADER_FILE).exists() and (inside / HEADER_FILE).exists() else path


def header_at(given: Mapping[str, object], key: str) -> Header | None:
    """The header of the artifact that a setting names; none for PEFT's folders, which have no header."""
    if given.get(key) is None:
        return None
    folder = artifact_folder(Path(str(given[key])))
    if not folder.is_dir():
        raise ArtifactError(f"{folder} (--{key}): no such folder")
    return None if is_foreign(folder) else read_header(folder)[0]


__all__ = ["artifact_folder", "cost_line", "header_at", "load_backbone", "watcher"]

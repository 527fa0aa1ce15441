"""What several verbs build from their settings before they call the library."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from promptprior.artifacts.artifact import is_foreign
from promptprior.artifacts.header import HEADER_FILE, Header, read_header
from promptprior.backbone import Backbone
from promptprior.compare.cost_estimate import tokens_per_second
from promptprior.compare.plan import load_backbone
from promptprior.compare.progress import duration, watch_steps
from promptprior.config.training import Settings
from promptprior.errors import ArtifactError
from promptprior.tasks import Task
from promptprior.watch import WatchStage, combine_watchers, tensorboard


def watcher(label: str, folder: Path | None) -> WatchStage:
    """Lines of progress, and TensorBoard where a folder is given. Raises SpecError when its package is missing."""
    lines = watch_steps(label)
    return lines if folder is None else combine_watchers([lines, tensorboard(folder)])


def with_source_steps(settings: Settings, steps: int | None) -> Settings:
    """Settings with other steps on sources."""
    return settings if steps is None else replace(settings, source=replace(settings.source, steps=steps))


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
    if key not in given or given[key] is None:
        return None
    folder = artifact_folder(Path(str(given[key])))
    if not folder.is_dir():
        raise ArtifactError(f"{folder} (--{key}): no such folder")
    if is_foreign(folder):
        return None
    return read_header(folder)[0]


def settings_in(header: Header) -> dict[str, Any]:
    """The shared settings an artifact was made with."""
    return {item.name: header.settings[item.name] for item in fields(Settings) if item.name in header.settings}


def options_in(header: Header) -> dict[str, Any]:
    """The options of the method an artifact was made with."""
    method = header.settings.get("method")
    fixed = ("name", "needs_sources", "uses_shots")
    return {k: v for k, v in method.items() if k not in fixed} if isinstance(method, Mapping) else {}


def filled(given: Mapping[str, object], below: Mapping[str, object]) -> dict[str, object]:
    """A mapping over another one, nested mappings too.

    >>> filled({"a": {"x": 1}}, {"a": {"x": 0, "y": 2}, "b": 3})
    {'a': {'x': 1, 'y': 2}, 'b': 3}
    """
    merged = dict(below)
    for key, value in given.items():
        under = below.get(key)
        both = isinstance(value, Mapping) and isinstance(under, Mapping)
        merged[key] = filled(value, under) if both else value  # type: ignore[arg-type]
    return merged


__all__ = [
    "artifact_folder",
    "cost_line",
    "filled",
    "header_at",
    "load_backbone",
    "options_in",
    "settings_in",
    "watcher",
    "with_source_steps",
]

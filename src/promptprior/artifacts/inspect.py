"""A readable page about an artifact folder, for people deciding whether to trust and use it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from promptprior.artifacts import peft_format as peft
from promptprior.artifacts.artifact import Prior, Prompt, is_foreign, load_any
from promptprior.artifacts.header import Header, TaskCard
from promptprior.artifacts.model_card import flat
from promptprior.notation import Params, Tensor


def inspect_artifact(folder: Path | str) -> str:
    """What a folder holds: method, backbone, shapes, norms in units of the backbone's scale, tasks, scores.

    Reads and checks everything, without the backbone. Raises ArtifactError as `from_pretrained` does.
    """
    folder = Path(folder)
    lines = adapter_lines(folder) if is_foreign(folder) else artifact_lines(load_any(folder))
    return "\n".join(lines) + "\n"


def artifact_lines(artifact: Prior | Prompt) -> Iterator[str]:
    """The page of a prior or prompt."""
    header = artifact.header
    yield f"{header.kind} of method {header.method} (written by {header.origin}, format {header.format_version})"
    yield from backbone_lines(header)
    yield from section(f"tensors of {header.parameterisation}", tensor_lines(header, artifact.params))
    yield from section("tasks", (task_line(task) for task in header.tasks))
    for name in ("scores", "diagnostics", "settings", "parameterisation_settings", "versions"):
        yield from section(name.replace("_", " "), value_lines(getattr(header, name)))


def adapter_lines(folder: Path) -> Iterator[str]:
    """The page of a folder that only PEFT wrote: it knows no backbone, so norms are absolute."""
    config, prompt = peft.read_adapter(folder)
    yield f"prompt written by PEFT ({config['peft_type']}); it keeps no fingerprint, tasks or scores"
    yield f"backbone  {config.get('base_model_name_or_path')}"
    yield from section("tensors", [tensor_line("prompt", prompt, prompt.shape[1], scale=1.0, unit="")])
    yield from section("settings", value_lines(config))


def section(name: str, lines: Iterator[str] | list[str]) -> Iterator[str]:
    """A heading and its indented lines; nothing at all without lines."""
    for place, line in enumerate(lines):
        if place == 0:
            yield f"\n{name}"
        yield f"  {line}"


def backbone_lines(header: Header) -> Iterator[str]:
    """The backbone the artifact is for."""
    card = header.backbone
    yield f"backbone  {card.name} ({card.architecture}, width {card.width})"
    yield f"          fingerprint {card.fingerprint}, embedding scale {card.scale:.4g}"


def tensor_lines(header: Header, params: Params) -> Iterator[str]:
    """One line for each tensor."""
    for name, value in sorted(params.items()):
        yield tensor_line(name, value, header.backbone.width, header.backbone.scale, unit=" x scale")


def tensor_line(name: str, value: Tensor, width: int, scale: float, unit: str) -> str:
    """Name, shape and size of the entries; vectors of the backbone's width are measured in its scale."""
    shape = " x ".join(map(str, value.shape))
    if not value.is_floating_point():
        return f"{name}  {shape}  ({value.dtype})"
    in_space = value.shape[-1] == width
    entries = value.float() / (scale if in_space else 1.0)
    rms, largest = entries.square().mean().sqrt(), entries.abs().max()
    return f"{name}  {shape}  rms {rms:.3g}, largest {largest:.3g}{unit if in_space else ''}"


def task_line(task: TaskCard) -> str:
    """A task with role, version and how many examples were drawn."""
    drawn = f"{len(task.example_ids)} examples" if task.example_ids else "all of train"
    return f"{task.role}  {task.name}  version {task.version}  fingerprint {task.fingerprint}  {drawn}"


def value_lines(mapping: Mapping[str, object]) -> Iterator[str]:
    """Dotted names and values, in a column."""
    pairs = list(flat(mapping))
    column = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        for place, text in enumerate(value_texts(value)):
            yield f"{'' if place else name:{column}}  {text}"


def value_texts(value: object) -> list[str]:
    """A value as a line; a table as a line for each of its rows."""
    if isinstance(value, float):
        return [f"{value:.6g}"]
    if isinstance(value, list | tuple) and value and all(isinstance(row, Mapping | list | tuple) for row in value):
        return [row_text(row) for row in value]
    return [str(value)]


def row_text(row: Mapping[str, object] | Sequence[object]) -> str:
    """A row of a table: names with their values, or numbers side by side."""
    if isinstance(row, Mapping):
        return ", ".join(f"{name} {value}" for name, value in flat(row))
    return " ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row)

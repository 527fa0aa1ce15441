"""A readable page about an artifact folder, for people deciding whether to trust and use it."""

from collections.abc import Mapping
from pathlib import Path

from promptprior.artifacts import peft_format as peft
from promptprior.artifacts.artifact import is_foreign, load_any
from promptprior.artifacts.model_card import flat_items
from promptprior.notation import Tensor


def inspect_artifact(folder: Path | str) -> str:
    """What a folder holds: method, backbone, shapes, norms in units of the backbone's scale, tasks, scores. Reads and
    checks everything, without the backbone. Raises ArtifactError as `from_pretrained` does."""
    folder = Path(folder)
    sections: dict[str, list[str]] = {}
    if is_foreign(folder):  # PEFT knows no backbone, so norms are absolute
        config, prompt = peft.read_adapter(folder)
        about = [
            f"prompt written by PEFT ({config['peft_type']}); it keeps no fingerprint, tasks or scores",
            f"backbone  {config.get('base_model_name_or_path')}",
        ]
        sections["tensors"] = [_tensor_line("prompt", prompt, prompt.shape[1], scale=1.0, unit="")]
        sections["settings"] = _value_lines(config)
    else:
        artifact = load_any(folder)
        header, card = artifact.header, artifact.header.backbone
        about = [
            f"{header.kind} of method {header.method} (written by {header.origin}, format {header.format_version})",
            f"backbone  {card.name} ({card.architecture}, width {card.width})",
            f"          fingerprint {card.fingerprint}, embedding scale {card.scale:.4g}",
        ]
        params = sorted(artifact.params.items())
        tensors = [_tensor_line(name, value, card.width, card.scale, " x scale") for name, value in params]
        sections[f"tensors of {header.parameterisation}"] = tensors
        sections["tasks"] = [
            f"{task.role}  {task.name}  version {task.version}  fingerprint {task.fingerprint}  "
            + (f"{len(task.example_ids)} examples" if task.example_ids else "all of train")
            for task in header.tasks
        ]
        for name in ("scores", "diagnostics", "settings", "parameterisation_settings", "versions"):
            sections[name.replace("_", " ")] = _value_lines(getattr(header, name))
    blocks = [about, *([title, *(f"  {line}" for line in lines)] for title, lines in sections.items() if lines)]
    return "\n\n".join(map("\n".join, blocks)) + "\n"


def _tensor_line(name: str, value: Tensor, width: int, scale: float, unit: str) -> str:
    # Name, shape and size of the entries; vectors of the backbone's width are measured in its scale.
    shape = " x ".join(map(str, value.shape))
    if not value.is_floating_point() or value.numel() == 0:
        return f"{name}  {shape}  ({value.dtype})"
    in_space = value.shape[-1] == width
    entries = value.float() / (scale if in_space else 1.0)
    rms, largest = entries.square().mean().sqrt(), entries.abs().max()
    return f"{name}  {shape}  rms {rms:.3g}, largest {largest:.3g}{unit if in_space else ''}"


def _value_lines(mapping: Mapping[str, object]) -> list[str]:
    # Dotted names and values in a column; a table has a line for each of its rows.
    pairs = list(flat_items(mapping))
    column = max((len(name) for name, _ in pairs), default=0)
    lines = []
    for name, value in pairs:
        texts = [f"{value:.6g}" if isinstance(value, float) else str(value)]
        if isinstance(value, list | tuple) and value and all(isinstance(row, Mapping | list | tuple) for row in value):
            texts = [
                ", ".join(f"{key} {entry}" for key, entry in flat_items(row))
                if isinstance(row, Mapping)
                else " ".join(f"{entry:.3g}" if isinstance(entry, float) else str(entry) for entry in row)
                for row in value
            ]
        lines += [f"{'' if i else name:{column}}  {text}" for i, text in enumerate(texts)]
    return lines

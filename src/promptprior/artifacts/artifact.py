"""What is kept and shared: a Prior (what the sources taught) and a Prompt (ready for one target), as folders.

A folder holds safetensors and `promptprior.json`. The folder of a plain prompt is also a PEFT adapter; a
folder that only PEFT wrote is read as a plain prompt. Loaded tensors are ordinary ones and can be trained on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from promptprior.artifacts import peft_format as peft
from promptprior.artifacts.header import (
    HEADER_FILE,
    Header,
    Kind,
    Origin,
    TaskCard,
    check_tensors,
    header_mapping,
    read_header,
    versions,
)
from promptprior.artifacts.model_card import model_card
from promptprior.backbone.identity import BackboneCard
from promptprior.errors import ArtifactError
from promptprior.files import (
    check_finite,
    check_replaceable,
    read_tensors,
    replace_folder,
    write_json,
    write_tensors,
    write_text,
)
from promptprior.notation import Float, Params, Tensor

__all__ = ["Header", "Prior", "Prompt", "TaskCard", "check_saveable", "load_any", "versions"]

README = "README.md"
TENSORS: dict[Kind, str] = {"prior": "prior.safetensors", "prompt": "prompt.safetensors"}
OURS = frozenset({HEADER_FILE, README, peft.CONFIG_FILE, peft.TENSORS_FILE, *TENSORS.values()})


@dataclass(frozen=True)
class Prior:
    """What source tasks taught: parameters with a leading copies axis, and where they come from."""

    header: Header
    params: Params

    def __post_init__(self) -> None:
        check_artifact("prior", self.header, self.params)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the folder, whole or not at all; equal priors give equal bytes. Raises ArtifactError."""
        save(Path(folder), self.header, self.params)

    @classmethod
    def from_pretrained(cls, folder: Path | str, backbone: BackboneCard | None = None) -> "Prior":
        """Read a folder. Raises ArtifactError when it is damaged, a prompt, or not of `backbone`."""
        return cls(*load(Path(folder), "prior", backbone))


@dataclass(frozen=True)
class Prompt:
    """A prompt for one target task, as parameters that its parameterisation turns into [L, D]."""

    header: Header
    params: Params

    def __post_init__(self) -> None:
        check_artifact("prompt", self.header, self.params)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the folder, whole or not at all; a plain prompt's loads with peft. Raises ArtifactError."""
        save(Path(folder), self.header, self.params)

    @classmethod
    def from_pretrained(cls, folder: Path | str, backbone: BackboneCard | None = None) -> "Prompt":
        """Read a folder, also one that only PEFT wrote (which needs `backbone`).

        Raises ArtifactError when it is damaged, a prior, no prompt, or not of `backbone`.
        """
        folder = Path(folder)
        if is_foreign(folder):
            return from_peft(folder, backbone)
        return cls(*load(folder, "prompt", backbone))


def check_saveable(folder: Path | str) -> None:
    """Raise ArtifactError when saving there would delete other files: call it before a long fit."""
    folder = Path(folder)
    check_replaceable(folder, OURS if (folder / HEADER_FILE).exists() else ())


def load_any(folder: Path | str, backbone: BackboneCard | None = None) -> Prior | Prompt:
    """Read a folder as what it is. Raises ArtifactError as the two `from_pretrained` do."""
    folder = Path(folder)
    if not (folder / HEADER_FILE).exists() or read_header(folder)[0].kind == "prompt":
        return Prompt.from_pretrained(folder, backbone)
    return Prior.from_pretrained(folder, backbone)


def is_foreign(folder: Path) -> bool:
    """Whether a folder is an adapter that PEFT wrote and this library did not."""
    return (folder / peft.CONFIG_FILE).exists() and not (folder / HEADER_FILE).exists()


def from_peft(folder: Path, backbone: BackboneCard | None) -> Prompt:
    """An adapter that PEFT wrote, as a plain prompt of the backbone at hand."""
    config, prompt = peft.read_adapter(folder)
    if backbone is None:
        raise ArtifactError(
            f"{folder} was written by PEFT, which keeps no fingerprint; say which backbone it is for: "
            f"from_pretrained(folder, backbone=card of {config.get('base_model_name_or_path')})"
        )
    peft.check_fits(config, prompt, backbone, folder)
    header = plain_header(str(config["peft_type"]).lower(), config, prompt, backbone, "peft")
    return Prompt(header, {"prompt": prompt[None].clone()})


def plain_header(
    method: str,
    settings: Mapping[str, object],
    prompt: Float[Tensor, "L D"],
    backbone: BackboneCard,
    origin: Origin,
    tasks: tuple[TaskCard, ...] = (),
) -> Header:
    """The header of one [L, D] matrix that another tool wrote."""
    length, width = prompt.shape
    shape = {"length": length, "width": width}
    return Header("prompt", method, settings, "direct", shape, backbone, tasks, versions=versions(), origin=origin)


# How it is done


def save(folder: Path, header: Header, params: Params) -> None:
    """Replace `folder` by the artifact."""
    stored = stored_params(header, params)
    check_saveable(folder)
    check_finite(stored, f"the {header.kind} for {folder}")
    replace_folder(folder, writer(header, stored), may_delete=OURS)


def writer(header: Header, params: Params) -> Callable[[Path], None]:
    """What fills an artifact folder."""

    def write(folder: Path) -> None:
        if is_plain(header, params):
            peft.write_adapter(folder, params["prompt"][0], header.backbone)
        elif is_lora(header):
            peft.write_lora(folder, params, header.parameterisation_settings, header.backbone)
        else:
            write_tensors(folder / TENSORS[header.kind], params)
        write_json(folder / HEADER_FILE, header_mapping(header, params))
        write_text(folder / README, model_card(header, params, is_plain(header, params) or is_lora(header)))

    return write


def load(folder: Path, kind: Kind, backbone: BackboneCard | None) -> tuple[Header, Params]:
    """Header and parameters of an artifact folder, checked against each other and against the backbone."""
    check_is_artifact(folder, kind)
    header, recorded = read_header(folder)
    if header.kind != kind:
        raise ArtifactError(
            f"{folder} is a {header.kind}; a {kind} was expected: "
            + ("adapt it to a target task first" if kind == "prompt" else "give the prior it was adapted from")
        )
    if backbone is not None:
        header.backbone.check(backbone, str(folder))
    params = read_params(folder, header)
    check_tensors(params, recorded, folder)
    return header, params


def read_params(folder: Path, header: Header) -> Params:
    """The parameters of an artifact, from our file or from PEFT's."""
    path = folder / TENSORS[header.kind]
    if is_lora(header):
        return peft.read_lora(folder)
    if header.kind == "prompt" and not path.exists() and (folder / peft.CONFIG_FILE).exists():
        return {"prompt": peft.read_adapter(folder)[1][None].clone()}
    return read_tensors(path)


def check_is_artifact(folder: Path, kind: Kind) -> None:
    """Raise ArtifactError when a folder is absent or holds neither our header nor an adapter."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; a {kind} is read from the folder it was saved to")
    if (folder / HEADER_FILE).exists():
        return
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    if is_foreign(folder):
        raise ArtifactError(f"{folder} is a PEFT adapter; a {kind} was expected: load it as a prompt")
    raise ArtifactError(f"{folder} has no {HEADER_FILE}, so it is no {kind}; it holds {there}: check the path")


def stored_params(header: Header, params: Params) -> Params:
    """Parameters as they are written: off the graph, and a plain prompt in float32, as PEFT has it."""
    plain = is_plain(header, params)
    detached = {name: value.detach().cpu() for name, value in params.items()}
    return {name: value.float() if plain else value for name, value in detached.items()}


def is_plain(header: Header, params: Params) -> bool:
    """Whether an artifact is one [L, D] prompt and nothing else, which PEFT can hold."""
    return header.kind == "prompt" and header.parameterisation == "direct" and params["prompt"].shape[0] == 1


def is_lora(header: Header) -> bool:
    """Whether an artifact holds LoRA's weights, which PEFT can hold too."""
    return header.parameterisation == "lora"


def check_artifact(kind: Kind, header: Header, params: Params) -> None:
    """Raise ArtifactError when header and parameters do not belong together."""
    if header.kind != kind:
        raise ArtifactError(f"a {kind} needs a header of kind {kind!r}; got {header.kind!r}")
    if not params or any(value.ndim == 0 for value in params.values()):
        raise ArtifactError(f"a {kind} needs tensors with a leading copies axis; got {shapes(params)}")
    if len({value.shape[0] for value in params.values()}) > 1:
        raise ArtifactError(f"all tensors of a {kind} need equally many copies; got {shapes(params)}")
    if header.parameterisation == "direct":
        extra = params.keys() - {"prompt"} if kind == "prior" else set()  # SPoT's prior keeps its start beside
        check_direct({name: value for name, value in params.items() if name not in extra}, header.backbone.width)


def check_direct(params: Params, width: int) -> None:
    """Raise ArtifactError unless the parameters are `prompt`, [C, L, D]."""
    prompt = params.get("prompt")
    if params.keys() != {"prompt"} or prompt is None or prompt.ndim != 3 or prompt.shape[2] != width:
        raise ArtifactError(
            f"the parameterisation 'direct' has one tensor 'prompt' of shape [copies, length, {width}]; got "
            f"{shapes(params)}"
        )


def shapes(params: Params) -> str:
    """Names and shapes for an error."""
    return ", ".join(f"{name} {list(value.shape)}" for name, value in params.items()) or "none"

"""What is kept and shared: a Prior (what the sources taught) and a Prompt (ready for one target), as folders.

A folder holds safetensors and `promptprior.json`. The folder of a plain prompt is also a PEFT adapter; a
folder that only PEFT wrote is read as a plain prompt. Loaded tensors are ordinary ones and can be trained on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self, cast

from promptprior.artifacts import peft_format as peft
from promptprior.artifacts.header import (
    HEADER_FILE,
    Header,
    Kind,
    Origin,
    TaskCard,
    check_tensors,
    read_header,
    tensor_records,
    versions,
    without_places,
)
from promptprior.artifacts.hub import fetch_folder, push_folder
from promptprior.artifacts.model_card import model_card
from promptprior.backbone.identity import BackboneCard
from promptprior.config.mapping import shorten, to_mapping
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
from promptprior.heads.fitted import without_head
from promptprior.notation import Float, Params, Tensor

__all__ = ["Header", "Prior", "Prompt", "TaskCard", "check_saveable", "load_any", "versions"]

README = "README.md"
READY = Path(__file__).parents[1] / "ready"  # what comes with the library: priors/ and prompts/, each BACKBONE/NAME
TENSORS: dict[Kind, str] = {"prior": "prior.safetensors", "prompt": "prompt.safetensors"}
OURS = frozenset({HEADER_FILE, README, peft.CONFIG_FILE, peft.TENSORS_FILE, *TENSORS.values()})


@dataclass(frozen=True)
class _Artifact:
    """A header and the params it describes, all with a leading copies axis. Raises ArtifactError for a mismatch."""

    header: Header
    params: Params
    kind: ClassVar[Kind]

    def __post_init__(self) -> None:
        header, params, kind = self.header, self.params, self.kind
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in params.items()) or "none"
        if header.kind != kind:
            raise ArtifactError(f"a {kind} needs a header of kind {kind!r}; got {header.kind!r}")
        if not params or any(value.ndim == 0 for value in params.values()):
            raise ArtifactError(f"a {kind} needs tensors with a leading copies axis; got {shapes}")
        if len({value.shape[0] for value in params.values()}) > 1:
            raise ArtifactError(f"all tensors of a {kind} need equally many copies; got {shapes}")
        if header.parameterisation == "prefix":
            prompt, settings = params.get("prompt"), header.parameterisation_settings
            numbers = [settings.get(name) for name in ("length", "depth", "heads", "head_width")]
            positions, depth, heads, head_width = (n if isinstance(n, int) else -1 for n in numbers)
            shape = (positions, depth * 2 * heads * head_width)
            if prompt is None or prompt.ndim != 3 or tuple(prompt.shape[1:]) != shape or min(depth, heads) < 0:
                raise ArtifactError(
                    "the parameterisation 'prefix' has a tensor 'prompt' of shape [copies, length, depth x 2 x heads x "
                    f"head_width] with {shorten(numbers)} of the header; got {shapes}: the file was edited, copy it "
                    "again"
                )
        if header.parameterisation == "direct":
            prompt, width = params.get("prompt"), header.backbone.width
            others = {name for name in params if not name.startswith("head.")} - {"prompt"}
            has_others = kind == "prompt" and bool(others)  # SPoT's prior keeps its start beside the prompt
            if prompt is None or has_others or prompt.ndim != 3 or prompt.shape[2] != width:
                raise ArtifactError(
                    f"the parameterisation 'direct' has one tensor 'prompt' of shape [copies, length, {width}]; got "
                    f"{shapes}"
                )
            length = header.parameterisation_settings.get("length", prompt.shape[1])
            if length != prompt.shape[1]:
                raise ArtifactError(
                    f"the header's parameterisation_settings say length {shorten(length)}; got {shapes}: the file was "
                    "edited, copy it again"
                )

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the folder, whole or not at all; equal artifacts give equal bytes.

        A plain prompt, a plain prefix of all layers and LoRA's weights are also an adapter that peft loads. Raises
        ArtifactError for numbers that are not finite, and for a folder that holds other files.
        """
        folder, header = Path(folder), self.header
        is_lora = header.parameterisation == "lora" and not header.head  # PEFT has no form for a head
        is_plain = (
            header.kind == "prompt"
            and header.parameterisation == "direct"
            and self.params["prompt"].shape[0] == 1
            and not header.head
        )
        params = {name: value.detach().cpu() for name, value in self.params.items()}
        is_prefix = is_plain_prefix(cast(Any, self))
        if is_plain or is_prefix:  # PEFT keeps float32
            params = {name: value.float() for name, value in params.items()}
        check_saveable(folder)
        check_finite(params, f"the {header.kind} for {folder}")

        def write(target: Path) -> None:
            if is_plain:
                peft.write_adapter(target, params["prompt"][0], header.backbone)
            elif is_prefix:
                peft.write_prefix(target, params["prompt"][0], prefix_shape(header), header.backbone)
            elif is_lora:
                peft.write_lora(target, params, header.parameterisation_settings, header.backbone)
            else:
                write_tensors(target / TENSORS[header.kind], params)
            # JSON has neither NaN nor Inf, and a diagnostic must not cost a fit: they are written as text
            plain = json.loads(json.dumps(to_mapping(header)), parse_constant=lambda name: str(float(name)))
            write_json(target / HEADER_FILE, {**plain, "tensors": tensor_records(params)})
            write_text(target / README, model_card(header, params, is_adapter=is_plain or is_prefix or is_lora))

        replace_folder(folder, write, may_delete=OURS)

    @classmethod
    def from_pretrained(cls, folder: Path | str, backbone: BackboneCard | None = None) -> Self:
        """Read a folder, or what comes with the library by its name (`smollm2/classification`); as a prompt also a
        folder that only PEFT wrote (which needs `backbone`). Raises ArtifactError when it is damaged, of the other
        kind, no artifact, or not of `backbone`."""
        folder, kind = artifact_folder(Path(folder)), cls.kind
        if not folder.is_dir():
            raise ArtifactError(f"{folder}: no such folder; a {kind} is read from the folder it was saved to")
        if is_foreign(folder):
            if kind != "prompt":
                raise ArtifactError(f"{folder} is a PEFT adapter; a {kind} was expected: load it as a prompt")
            config, prompt = peft.read_adapter(folder)
            if backbone is None:
                raise ArtifactError(
                    f"{folder} was written by PEFT, which keeps no fingerprint; say which backbone it is for: "
                    f"from_pretrained(folder, backbone=card of {config.get('base_model_name_or_path')})"
                )
            peft.check_fits(config, prompt, backbone, folder)
            header = plain_header(str(config["peft_type"]).lower(), config, prompt, backbone, "peft")
            if config["peft_type"] == peft.PREFIX:
                shape = peft.prefix_settings(config, prompt, folder)
                header = replace(header, parameterisation="prefix", parameterisation_settings=shape)
            return cls(header, {"prompt": prompt[None].clone()})

        if not (folder / HEADER_FILE).exists():
            names = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
            raise ArtifactError(f"{folder} has no {HEADER_FILE}, so it is no {kind}; it holds {names}: check the path")
        header, recorded = read_header(folder)
        if header.kind != kind:
            advice = "adapt it to a target task first" if kind == "prompt" else "give the prior it was adapted from"
            raise ArtifactError(f"{folder} is a {header.kind}; a {kind} was expected: {advice}")
        if backbone is not None:
            header.backbone.check(backbone, str(folder))
        path = folder / TENSORS[kind]
        if header.parameterisation == "lora" and not header.head:
            params = peft.read_lora(folder)
        elif kind == "prompt" and not path.exists() and (folder / peft.CONFIG_FILE).exists():
            params = {"prompt": peft.read_adapter(folder)[1][None].clone()}
        else:
            params = read_tensors(path)
        check_tensors(params, recorded, folder)
        return cls(header, params)

    @property
    def headless(self) -> Self:
        """The same without its head, which reads behind it: answers come from the likelihood."""
        header = replace(self.header, head="", head_settings={}, choices=())
        return type(self)(header, without_head(self.params))

    def push_to_hub(
        self, repo: str, private: bool | None = None, license: str | None = None, widget: Sequence[str] = ()
    ) -> str:
        """Commit the folder to the model repository `repo` of the Hub, OWNER/NAME, and return the commit's hash.

        The card says `license` in place of "other", and shows the texts of `widget` as examples: none of yours are
        shared unless you name them. What the header says of places on this machine stays here. Raises ArtifactError
        when the Hub refuses or cannot be reached.
        """
        with TemporaryDirectory() as folder:
            path = Path(folder) / "artifact"
            replace(self, header=without_places(self.header)).save_pretrained(path)
            return push_folder(path, repo, "model", private, license, widget)

    @classmethod
    def from_hub(cls, repo: str, revision: str | None = None, backbone: BackboneCard | None = None) -> Self:
        """Read an artifact from the Hub, of the commit, tag or branch `revision`; name a commit to get the same
        numbers for ever. Raises ArtifactError as `from_pretrained` does, and for a repository that holds pickles."""
        with TemporaryDirectory() as folder:
            fetch_folder(repo, Path(folder), "model", revision)
            return cls.from_pretrained(folder, backbone)


class Prior(_Artifact):
    """What source tasks taught: parameters with a leading copies axis (of `multitask` "prompt" [1, L, D]), and where
    they come from (`header`). Vectors are in the units of the backbone's embeddings."""

    kind = "prior"


class Prompt(_Artifact):
    """A prompt for one target task, as parameters that its parameterisation turns into [L, D]: L vectors of the
    backbone's width D, in the units of its embeddings."""

    kind = "prompt"


def prefix_shape(header: Header) -> tuple[int, int, int]:
    """The layers, heads and width of a head that a header says of its prefix."""
    depth, heads, head_width = (header.parameterisation_settings[name] for name in ("depth", "heads", "head_width"))
    return cast(tuple[int, int, int], (depth, heads, head_width))


def is_plain_prefix(artifact: Prior | Prompt) -> bool:
    """Whether an artifact is one prefix of all layers, as the model reads it, that PEFT has a form for."""
    header, settings = artifact.header, artifact.header.parameterisation_settings
    if header.kind != "prompt" or header.parameterisation != "prefix" or artifact.params["prompt"].shape[0] != 1:
        return False
    if any(settings.get(name) for name in ("layers", "key_units", "value_units")):
        return False
    if not header.backbone.is_encoder_decoder:
        return True
    depth = prefix_shape(header)[0]  # PEFT keeps one of several layers that it reads alike
    by_layer, first = artifact.params["prompt"][0].unflatten(1, (depth, -1)).unbind(1), peft.read_layers(depth)
    return all(bool((by_layer[layer] == by_layer[first.index(first[layer])]).all()) for layer in range(depth))


def check_saveable(folder: Path | str) -> None:
    """Raise ArtifactError when saving there would delete other files: call it before a long fit."""
    folder = Path(folder)
    check_replaceable(folder, OURS if (folder / HEADER_FILE).exists() else ())


def load_any(folder: Path | str, backbone: BackboneCard | None = None) -> Prior | Prompt:
    """Read a folder as what it is. Raises ArtifactError as `from_pretrained` does."""
    folder = Path(folder)
    if not (folder / HEADER_FILE).exists() or read_header(folder)[0].kind == "prompt":
        return Prompt.from_pretrained(folder, backbone)
    return Prior.from_pretrained(folder, backbone)


def artifact_folder(path: Path) -> Path:
    """A prior's or prompt's folder: what `promptprior fit` wrote holds it as prior/. What is no folder may be the name
    of an artifact that comes with the library (`ready_names`)."""
    if not path.exists():
        for side in ("priors", "prompts"):
            if path.as_posix() in ready_names(side):
                return READY / side / path
    inside = path / "prior"
    return inside if not (path / HEADER_FILE).exists() and (inside / HEADER_FILE).exists() else path


def ready_names(side: Literal["priors", "prompts"]) -> list[str]:
    """Names of the priors or prompts that come with the library, each BACKBONE/NAME."""
    return sorted(file.parent.relative_to(READY / side).as_posix() for file in READY.glob(f"{side}/*/*/{HEADER_FILE}"))


def is_foreign(folder: Path) -> bool:
    """Whether a folder is an adapter that PEFT wrote and this library did not."""
    return (folder / peft.CONFIG_FILE).exists() and not (folder / HEADER_FILE).exists()


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

"""What a saved prior or prompt says about itself, in readable JSON without dates: equal fits give equal bytes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any, Literal, cast

import torch

from promptprior.backbone.identity import BackboneCard
from promptprior.config.mapping import from_mapping, shorten, to_mapping
from promptprior.errors import ArtifactError, DataError, SpecError
from promptprior.files import read_json
from promptprior.notation import Params
from promptprior.tasks.loading.new_rows import reading_spec
from promptprior.tasks.loading.spec import TaskSpec, spec_from
from promptprior.tasks.task import Task

HEADER_FILE = "promptprior.json"
FORMAT_VERSION = 1
Kind = Literal["prior", "prompt"]
Origin = Literal["promptprior", "peft", "npy", "pt", "safetensors"]


@dataclass(frozen=True)
class TaskCard:
    """A task an artifact was learned from. `example_ids` are the drawn examples; empty means all of train.

    `path` is the file or folder that the target was loaded from, absolute, where it was one. `spec` are the keys of the
    spec that its rows are read by, where they came from no file: then the prompt alone says how new rows are read.
    """

    name: str
    version: str
    fingerprint: str
    role: Literal["source", "target"]
    example_ids: tuple[str, ...] = ()
    path: str = field(default="", metadata={"omit_from_hash_if_default": True})
    spec: Mapping[str, object] = field(default_factory=dict, metadata={"omit_from_hash_if_default": True})

    @property
    def is_of_memory(self) -> bool:
        """Whether its rows came from no file, so that `spec` alone says how rows are read."""
        return bool(self.spec) and not self.path

    def rows_read_as(self, loads: str, where: Path, data: Path | None) -> Task | TaskSpec:
        """How rows are read: by the spec kept here, else by that of what `loads` the task. `where` is the artifact.

        Raises SpecError and DataError as `reading_spec` does.
        """
        return spec_from(self.spec, str(where)) if self.is_of_memory else reading_spec(loads, data)


@dataclass(frozen=True)
class TensorRecord:
    """What a header says of a tensor: its shape, its type as torch names it, and `tensor_digest` of its entries."""

    shape: tuple[int, ...]
    dtype: str
    digest: str


@dataclass(frozen=True)
class Header:
    """Everything about an artifact but its tensors.

    `settings` are the method's, `parameterisation_settings` what turns the tensors back into prompts. `scores` and
    `diagnostics` are free; numbers that are not finite are written as text. Of a prompt that was adapted scores["dev"]
    says what dev chose; its "dev_score" is None for free text, which is chosen by likelihood. `origin` is the format
    that another tool wrote the prompt in. `head`, where one was fitted, is what answers in place of the words'
    likelihood: with its settings and the choices it tells apart, in label order; its tensors are named "head.*".
    """

    kind: Kind
    method: str
    settings: Mapping[str, object]
    parameterisation: str
    parameterisation_settings: Mapping[str, object]
    backbone: BackboneCard
    tasks: tuple[TaskCard, ...] = ()
    scores: Mapping[str, object] = field(default_factory=dict)
    diagnostics: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, object] = field(default_factory=dict)
    origin: Origin = "promptprior"
    head: str = field(default="", metadata={"omit_from_hash_if_default": True})
    head_settings: Mapping[str, object] = field(default_factory=dict, metadata={"omit_from_hash_if_default": True})
    choices: tuple[str, ...] = field(default=(), metadata={"omit_from_hash_if_default": True})
    format_version: int = FORMAT_VERSION

    def find_target(self, where: Path, data: Path | None) -> tuple[str, TaskCard] | None:
        """What loads the target, and what the header says of it; None where it names none. `where` is the artifact.

        That is a task folder of its name in `data`, else the file or folder that it was loaded from, else its name.
        Raises DataError where its file or folder has gone.
        """
        cards = [card for card in self.tasks if card.role == "target"]
        if not cards:
            return None
        card = cards[0]
        if not card.path or (data is not None and (data / card.name).is_dir()):
            return card.name, card
        if not Path(card.path).exists():
            raise DataError(
                f"{where} was adapted to task {card.name!r} of {card.path}, which is not there any more: say where it "
                "is (--target FILE), or to serve, name a folder with a task folder of this name (--data FOLDER)"
            )
        return card.path, card


def without_places(header: Header) -> Header:
    """The header without where things lie on this machine, for others to read, in the members of a blend too.

    Tasks have no path; other absolute paths (of the backbone, a prior, an option) are cut to their last part.
    """

    def cut(value: object, key: str = "") -> object:
        if isinstance(value, Mapping):
            return {name: "" if name == "path" else cut(inner, name) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [cut(inner, key) for inner in value]
        if not isinstance(value, str) or not Path(value).is_absolute() or len(Path(value).parts) < 3:
            return value
        return Path(value).name if key in ("name", "backbone", "prior") or Path(value).exists() else value

    return from_mapping(Header, cast(Mapping[str, object], cut(to_mapping(header))), HEADER_FILE)


@cache
def versions() -> Mapping[str, object]:
    """The versions of Python and of the libraries that decide what numbers come out."""
    installed: dict[str, object] = {"python": python_version()}
    for name in ("promptprior", "torch", "transformers", "safetensors"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:  # a checkout that is only on the path
            installed[name] = "none"
    return installed


def read_header(folder: Path) -> tuple[Header, dict[str, Any]]:
    """The header of an artifact folder, and its records of the tensors. Raises ArtifactError when the file is damaged,
    of a format this version does not know, or misses a key."""
    path = folder / HEADER_FILE
    mapping = read_json(path)
    if not isinstance(mapping, dict):
        raise ArtifactError(f"{path}: expected a JSON object; got {type(mapping).__name__}: copy it again")
    if (file_version := mapping.get("format_version")) != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format_version is {file_version!r}; promptprior {versions()['promptprior']} reads "
            f"{FORMAT_VERSION}: install the promptprior that wrote it"
        )
    tensors = mapping.pop("tensors", None)
    if not isinstance(tensors, dict):
        raise ArtifactError(f"{path}: 'tensors' is missing; the file was edited: copy it again")
    try:
        for name, record in tensors.items():
            if not isinstance(record, dict):
                raise SpecError(f"{path}: 'tensors.{name}' is {shorten(record)}; expected shape, dtype and digest")
            from_mapping(TensorRecord, record, str(path), f"tensors.{name}")
        return from_mapping(Header, mapping, str(path)), tensors
    except SpecError as error:
        raise ArtifactError(f"{error}; the file was edited or is from another version") from error


def check_tensors(params: Params, recorded: Mapping[str, Any], where: Path) -> None:
    """Raise ArtifactError unless the tensors are the ones the header was written with."""
    if params.keys() != recorded.keys():
        raise ArtifactError(
            f"{where} holds the tensors {', '.join(params)}; its {HEADER_FILE} lists {', '.join(recorded)}: "
            "copy the folder again"
        )
    for name, actual in tensor_records(params).items():
        expected = recorded[name]
        if actual["shape"] != expected["shape"] or actual["dtype"] != expected["dtype"]:
            raise ArtifactError(
                f"{where}: tensor {name!r} has shape {actual['shape']} ({actual['dtype']}); its "
                f"{HEADER_FILE} says {expected['shape']} ({expected['dtype']}): copy the folder again"
            )
        if actual["digest"] != expected["digest"]:
            raise ArtifactError(
                f"{where}: the numbers of tensor {name!r} are not those its {HEADER_FILE} was written with: the "
                f"file is damaged, or another tool wrote it (then delete {HEADER_FILE} to load it as PEFT's)"
            )


def tensor_digest(value: torch.Tensor) -> str:
    """Sixteen hex digits over the entries of a tensor."""
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def tensor_records(params: Params) -> dict[str, dict[str, Any]]:
    """What a header says of tensors of any shape: shape, type and digest by name."""
    return {
        name: {
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "digest": tensor_digest(value),
        }
        for name, value in sorted(params.items())
    }

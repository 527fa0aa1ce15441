"""Soft prompts that other tools wrote, read safely: nothing in a file is ever executed.

    PEFT                     a folder with adapter_config.json (prompt tuning, P-tuning, CPT)
    Google prompt-tuning     .npy, [L, D] or [1, L, D], float32, float64, or bfloat16 as numpy stores it (two raw bytes)
    ATTEMPT, OpenPrompt, …   .pt, .pth, .bin: a tensor, a Parameter, or a (nested) state dict that holds one prompt
    safetensors              one prompt among its tensors
    promptprior              a folder of a prompt, or of a prior that is one prompt

`.pt` files go through torch's restricted unpickler (weights_only), which builds tensors and plain containers only.
"""

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptprior.artifacts import peft_format as peft
from promptprior.artifacts.artifact import Prompt, is_foreign, load_any, plain_header
from promptprior.artifacts.as_matrix import single_prompt
from promptprior.artifacts.header import HEADER_FILE, Origin, TaskCard
from promptprior.backbone.identity import BackboneCard
from promptprior.errors import ArtifactError
from promptprior.files import check_finite, read_bytes, read_tensors
from promptprior.notation import Float, Tensor

PROMPT_NAMES = (
    "prompt",  # promptprior, T5X
    "prompt_embeddings",  # PEFT on disk
    "prefix_shared",  # ATTEMPT
    "soft_embeds",  # OpenPrompt
    "soft_embedding",
    "soft_prompt",
    "soft_tokens",  # OpenDelta
    "prompt_embedding",
    "prompt_encoder",  # PEFT in memory: prompt_encoder.default.embedding.weight
    "task_prompt",
    "word_embeddings",  # an embedding module of its own
)
"""Parts of dotted names that say "this tensor is the prompt"."""


@dataclass(frozen=True, eq=False)
class FoundPrompt:
    """A prompt in float32, the format it was found in, and what its file says of it."""

    prompt: Float[Tensor, "L D"]
    origin: Origin
    known: Mapping[str, object]


def read_prompt(
    path: Path | str, backbone: BackboneCard | None = None, tensor: str | None = None
) -> Float[Tensor, "L D"]:
    """The prompt in a file or folder, float32, in memory of its own. See `find_prompt`."""
    return find_prompt(path, backbone, tensor).prompt


def find_prompt(path: Path | str, backbone: BackboneCard | None = None, tensor: str | None = None) -> FoundPrompt:
    """The prompt in a file or folder, with what is known about it.

    `tensor` names one of several tensors. Raises ArtifactError when there is no such file, it is damaged, holds no or
    several prompts, anything but numbers, or NaN, and when the prompt does not fit `backbone` (where that is given).
    """
    path = Path(path)
    found = found_in_folder(path, backbone) if path.is_dir() else found_in_file(path, tensor)
    check_finite({found.known.get("tensor") or "prompt": found.prompt}, str(path))  # type: ignore[dict-item]
    if backbone is not None:
        check_width(found.prompt, backbone, path)
    return found


def imported(
    path: Path | str, backbone: BackboneCard, tasks: tuple[TaskCard, ...] = (), tensor: str | None = None
) -> Prompt:
    """A prompt that another tool wrote, as one of this library, for a backbone whose prompt it is said to be.

    Other formats keep no fingerprint: that the prompt was trained on this very model is the caller's word, and only
    widths are compared. Raises ArtifactError as `find_prompt` does.
    """
    found = find_prompt(path, backbone, tensor)
    settings = {"file": Path(path).name, **found.known}
    header = plain_header("imported", settings, found.prompt, backbone, found.origin, tasks)
    return Prompt(header, {"prompt": found.prompt[None].clone()})


# Folders


def found_in_folder(folder: Path, backbone: BackboneCard | None) -> FoundPrompt:
    """The prompt of an artifact or adapter folder. Raises ArtifactError for any other folder."""
    inside = folder / "prior"  # what fit wrote
    folder = inside if not (folder / HEADER_FILE).exists() and (inside / HEADER_FILE).exists() else folder
    if (folder / HEADER_FILE).exists():
        return found_in_artifact(folder, backbone)
    if is_foreign(folder):
        return found_in_adapter(folder, backbone)
    readable = sorted(p.name for p in folder.iterdir() if p.suffix in READERS)
    hint = f"name the file: {', '.join(readable[:5])}" if readable else f"readable are {formats()}"
    raise ArtifactError(f"{folder} has neither {HEADER_FILE} nor {peft.CONFIG_FILE}, so it is no prompt; {hint}")


def found_in_artifact(folder: Path, backbone: BackboneCard | None) -> FoundPrompt:
    """The prompt of a folder that this library wrote."""
    artifact = load_any(folder, backbone)
    known = {"method": artifact.header.method, "tasks": [task.name for task in artifact.header.tasks]}
    return FoundPrompt(single_prompt(artifact, str(folder)), artifact.header.origin, known)


def found_in_adapter(folder: Path, backbone: BackboneCard | None) -> FoundPrompt:
    """The prompt of a folder that PEFT wrote."""
    config, prompt = peft.read_adapter(folder)
    if backbone is not None:
        peft.check_fits(config, prompt, backbone, folder)
    names = ("peft_type", "task_type", "base_model_name_or_path", "num_virtual_tokens")
    return FoundPrompt(prompt.clone(), "peft", {name: config[name] for name in names if name in config})


# Files


def found_in_file(path: Path, tensor: str | None) -> FoundPrompt:
    """The prompt of a file, by what its name ends in. Raises ArtifactError for an unknown ending."""
    if path.suffix not in READERS:
        raise ArtifactError(f"{path}: prompts are not read from this kind of file; readable are {formats()}")
    origin, reader = READERS[path.suffix]
    tensors = reader(path)
    name = chosen_name(tensors, tensor, path)
    known = {"tensor": name} if name else {}
    return FoundPrompt(as_matrix(tensors[name], path, name), origin, known)


def numpy_tensors(path: Path) -> dict[str, Tensor]:
    """The one array of a .npy file."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        read_bytes(path)  # says what is there instead
        raise
    except (ValueError, EOFError, OSError) as error:
        raise unreadable(path, error, ".npy", "pickle" in str(error)) from error
    return {"": array_tensor(array, path)}


def array_tensor(array: Any, path: Path) -> Tensor:
    """A numpy array as a tensor; numpy knows no bfloat16 and stores it as two raw bytes."""
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ArtifactError(
            f"{path}: its numbers are {array.dtype}; expected floating point: a prompt is a matrix of real numbers"
        )
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def torch_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, by dotted names; "" is a bare tensor."""
    read_bytes(path)  # says what is there instead
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch's, about pickles it then refuses
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise half a dozen kinds
        raise unreadable(path, error, ".pt", isinstance(error, pickle.UnpicklingError)) from error
    return dict(named_tensors(held))


def unreadable(path: Path, error: Exception, kind: str, holds_objects: bool) -> ArtifactError:
    """Why a file was not read, and what to do."""
    if holds_objects:
        return ArtifactError(
            f"{path}: it holds Python objects, not numbers alone, or is no {kind} file; unpickling them could run "
            "code, so they are never opened: in the program that wrote it, save the tensor or array itself"
        )
    said = str(error).strip().splitlines() or [type(error).__name__]
    return ArtifactError(f"{path}: not a whole {kind} file ({said[0]}): copy it again")


def named_tensors(held: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested containers, with its dotted name."""
    if isinstance(held, Tensor):
        yield name, held.detach()
    elif isinstance(held, Mapping):
        for key, value in held.items():
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(held, list | tuple):
        for place, value in enumerate(held):
            yield from named_tensors(value, f"{name}.{place}" if name else str(place))


def safe_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; whether the prompt is finite is checked later."""
    return read_tensors(path, finite=False)


Reader = Callable[[Path], dict[str, Tensor]]
READERS: Mapping[str, tuple[Origin, Reader]] = {
    ".npy": ("npy", numpy_tensors),
    ".pt": ("pt", torch_tensors),
    ".pth": ("pt", torch_tensors),
    ".bin": ("pt", torch_tensors),
    ".safetensors": ("safetensors", safe_tensors),
}


def formats() -> str:
    """What can be read, for errors."""
    return f"{', '.join(READERS)} files, PEFT adapter folders and folders of promptprior"


# The tensor and its shape


def chosen_name(tensors: Mapping[str, Tensor], asked: str | None, path: Path) -> str:
    """The name of the tensor that is the prompt: the one asked for, the only one, or the only one named like one."""
    if asked is not None and asked not in tensors:
        raise ArtifactError(f"{path} has no tensor {asked!r} (--tensor); it has {listed(tensors)}")
    likely = [name for name in tensors if set(name.split(".")) & set(PROMPT_NAMES)]
    chosen = [asked] if asked is not None else list(tensors) if len(tensors) == 1 else likely
    if len(chosen) != 1:
        raise ArtifactError(
            f"{path}: {len(chosen) or 'none'} of its {len(tensors)} tensors looks like the prompt; say which is "
            f"(--tensor NAME): {listed(tensors)}"
        )
    return chosen[0]


def listed(tensors: Mapping[str, Tensor]) -> str:
    """Names and shapes, the first twenty."""
    names = [f"{name or '(unnamed)'} {list(value.shape)}" for name, value in tensors.items()]
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "") if names else "none"


def as_matrix(value: Tensor, path: Path, name: str) -> Float[Tensor, "L D"]:
    """[L, D] or [1, L, D] as [L, D] in float32. Raises ArtifactError for other shapes, whole numbers, empty ones."""
    what = f"{path}: its tensor {name!r}" if name else str(path)
    if not value.is_floating_point():
        raise ArtifactError(f"{what} holds {value.dtype}; expected floating point: token ids are no soft prompt")
    matrix = value[0] if value.ndim == 3 and value.shape[0] == 1 else value
    if matrix.ndim != 2 or 0 in matrix.shape:
        several = f"; it looks like {value.shape[0]} prompts: save the one you want" if value.ndim == 3 else ""
        raise ArtifactError(f"{what} has shape {list(value.shape)}; expected [length, width] of one prompt{several}")
    return matrix.to(torch.float32, copy=True).contiguous()


def check_width(prompt: Float[Tensor, "L D"], backbone: BackboneCard, path: Path) -> None:
    """Raise ArtifactError when a prompt cannot be the backbone's."""
    if prompt.shape[1] != backbone.width:
        turned = "; it may be transposed: save its transpose" if prompt.shape[0] == backbone.width else ""
        raise ArtifactError(
            f"{path} has shape {list(prompt.shape)}, so width {prompt.shape[1]}; {backbone.name} has width "
            f"{backbone.width}{turned}: name the backbone it was trained on (--backbone)"
        )

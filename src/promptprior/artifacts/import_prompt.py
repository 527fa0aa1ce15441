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
from functools import partial
from pathlib import Path

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
    path, name = Path(path), ""
    if path.is_dir():
        found = _find_in_folder(path, backbone)
    elif path.suffix in READERS:
        origin, reader = READERS[path.suffix]
        name, prompt = _choose_matrix(reader(path), tensor, path)
        found = FoundPrompt(prompt, origin, {"tensor": name} if name else {})
    else:
        raise ArtifactError(f"{path}: prompts are not read from this kind of file; readable are {FORMATS}")
    check_finite({name or "prompt": found.prompt}, str(path))
    rows, width = found.prompt.shape
    if backbone is not None and width != backbone.width:
        turned = "; it may be transposed: save its transpose" if rows == backbone.width else ""
        raise ArtifactError(
            f"{path} has shape {[rows, width]}, so width {width}; {backbone.name} has width "
            f"{backbone.width}{turned}: name the backbone it was trained on (--backbone)"
        )
    return found


def import_prompt(
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


def _find_in_folder(folder: Path, backbone: BackboneCard | None) -> FoundPrompt:
    prior = folder / "prior"  # what fit wrote
    if not (folder / HEADER_FILE).exists() and (prior / HEADER_FILE).exists():
        folder = prior
    if (folder / HEADER_FILE).exists():
        artifact = load_any(folder, backbone)
        known = {"method": artifact.header.method, "tasks": [task.name for task in artifact.header.tasks]}
        return FoundPrompt(single_prompt(artifact, str(folder)), artifact.header.origin, known)
    if is_foreign(folder):
        config, prompt = peft.read_adapter(folder)
        if backbone is not None:
            peft.check_fits(config, prompt, backbone, folder)
        names = ("peft_type", "task_type", "base_model_name_or_path", "num_virtual_tokens")
        return FoundPrompt(prompt.clone(), "peft", {name: config[name] for name in names if name in config})
    readable = sorted(p.name for p in folder.iterdir() if p.suffix in READERS)
    hint = f"name the file: {', '.join(readable[:5])}" if readable else f"readable are {FORMATS}"
    raise ArtifactError(f"{folder} has neither {HEADER_FILE} nor {peft.CONFIG_FILE}, so it is no prompt; {hint}")


def _choose_matrix(tensors: Mapping[str, Tensor], wanted: str | None, path: Path) -> tuple[str, Float[Tensor, "L D"]]:
    """The name and the [L, D] float32 of the tensor that is the prompt: the wanted, the only, or the likely one."""
    names = [f"{name or '(unnamed)'} {list(value.shape)}" for name, value in tensors.items()]
    listing = ", ".join(names[:20]) + (", …" if len(names) > 20 else "") if names else "none"
    if wanted is not None and wanted not in tensors:
        raise ArtifactError(f"{path} has no tensor {wanted!r} (--tensor); it has {listing}")
    likely = [name for name in tensors if set(name.split(".")) & set(PROMPT_NAMES)]
    candidates = [wanted] if wanted is not None else list(tensors) if len(tensors) == 1 else likely
    if len(candidates) != 1:
        raise ArtifactError(
            f"{path}: {len(candidates) or 'none'} of its {len(tensors)} tensors looks like the prompt; say which is "
            f"(--tensor NAME): {listing}"
        )
    [name] = candidates
    value = tensors[name]
    what = f"{path}: its tensor {name!r}" if name else str(path)
    if not value.is_floating_point():
        raise ArtifactError(f"{what} holds {value.dtype}; expected floating point: token ids are no soft prompt")
    matrix = value[0] if value.ndim == 3 and value.shape[0] == 1 else value
    if matrix.ndim != 2 or 0 in matrix.shape:
        hint = f"; it looks like {value.shape[0]} prompts: save the one you want" if value.ndim == 3 else ""
        raise ArtifactError(f"{what} has shape {list(value.shape)}; expected [length, width] of one prompt{hint}")
    return name, matrix.to(torch.float32, copy=True).contiguous()


def _read_numpy(path: Path) -> dict[str, Tensor]:
    """The one array of a .npy file, under the name ""."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        read_bytes(path)  # says what is there instead
        raise
    except (ValueError, EOFError, OSError) as error:
        raise _unreadable(path, error, ".npy", "pickle" in str(error)) from error
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None:
        # numpy knows no bfloat16 and stores it as two raw bytes
        return {"": torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)}
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ArtifactError(
            f"{path}: its numbers are {array.dtype}; expected floating point: a prompt is a matrix of real numbers"
        )
    return {"": torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))}


def _read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, by dotted names; "" is a bare tensor."""
    read_bytes(path)  # says what is there instead
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch's, about pickles it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise half a dozen kinds
        raise _unreadable(path, error, ".pt", isinstance(error, pickle.UnpicklingError)) from error
    return dict(named_tensors(content))


def _unreadable(path: Path, error: Exception, kind: str, holds_objects: bool) -> ArtifactError:
    if holds_objects:
        return ArtifactError(
            f"{path}: it holds Python objects, not numbers alone, or is no {kind} file; unpickling them could run "
            "code, so they are never opened: in the program that wrote it, save the tensor or array itself"
        )
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return ArtifactError(f"{path}: not a whole {kind} file ({reason[0]}): copy it again")


def named_tensors(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested containers, with its dotted name."""
    if isinstance(content, Tensor):
        yield name, content.detach()
    elif isinstance(content, Mapping | list | tuple):
        for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))


Reader = Callable[[Path], dict[str, Tensor]]
READERS: Mapping[str, tuple[Origin, Reader]] = {
    ".npy": ("npy", _read_numpy),
    ".pt": ("pt", _read_torch),
    ".pth": ("pt", _read_torch),
    ".bin": ("pt", _read_torch),
    ".safetensors": ("safetensors", partial(read_tensors, finite=False)),  # whether it is finite is checked later
}
FORMATS = f"{', '.join(READERS)} files, PEFT adapter folders and folders of promptprior"

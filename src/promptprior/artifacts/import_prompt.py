"""Soft prompts that other tools wrote, read safely: nothing in a file is ever executed.

    PEFT                     a folder with adapter_config.json (prompt tuning, P-tuning, CPT)
    Google prompt-tuning     .npy, [L, D] or [1, L, D], float32, float64, or bfloat16 as numpy stores it (two raw bytes)
    ATTEMPT, OpenPrompt, …   .pt, .pth, .bin: a tensor, a Parameter, or a (nested) state dict that holds one prompt
    safetensors              one prompt among its tensors
    promptprior              a folder of a prompt, or of a prior that is one prompt

`.pt` files go through torch's restricted unpickler (weights_only), which builds tensors and plain containers only.
"""

import io
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
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

ORIGINS: Mapping[str, Origin] = {".npy": "npy", ".pt": "pt", ".pth": "pt", ".bin": "pt", ".safetensors": "safetensors"}
MOST_BYTES = 2**31  # of a file; prompts are a thousandth of that
MOST_NESTED = 32  # containers in one another
FORMATS = f"{', '.join(ORIGINS)} files, PEFT adapter folders and folders of promptprior"


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
    folder = path if (path / HEADER_FILE).exists() else path / "prior"  # a folder of ours, or the prior that fit wrote
    if (folder / HEADER_FILE).exists():
        artifact = load_any(folder, backbone)
        known = {"method": artifact.header.method, "tasks": [task.name for task in artifact.header.tasks]}
        found = FoundPrompt(single_prompt(artifact, str(folder)), artifact.header.origin, known)
    elif is_foreign(path):
        config, prompt = peft.read_adapter(path)
        if backbone is not None:
            peft.check_fits(config, prompt, backbone, path)
        if config["peft_type"] == peft.PREFIX:
            raise ArtifactError(
                f"{path} is a prefix of keys and values, which is no matrix of embeddings: import it as a prompt of "
                "its own (promptprior import)"
            )
        names = ("peft_type", "task_type", "base_model_name_or_path", "num_virtual_tokens")
        found = FoundPrompt(prompt.clone(), "peft", {name: config[name] for name in names if name in config})
    elif path.is_dir():
        readable = sorted(p.name for p in path.iterdir() if p.suffix in ORIGINS)
        hint = f"name the file: {', '.join(readable[:5])}" if readable else f"readable are {FORMATS}"
        raise ArtifactError(f"{path} has neither {HEADER_FILE} nor {peft.CONFIG_FILE}, so it is no prompt; {hint}")
    elif path.suffix in ORIGINS:
        name, prompt = _choose_matrix(_read_file(path), tensor, path)
        found = FoundPrompt(prompt, ORIGINS[path.suffix], {"tensor": name} if name else {})
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

    Other formats keep no fingerprint: that the prompt was trained on this model is the caller's word, and only widths
    are compared. Raises ArtifactError as `find_prompt` does.
    """
    folder = Path(path)
    if is_foreign(folder) and peft.read_adapter(folder)[0]["peft_type"] == peft.PREFIX:
        prefix = Prompt.from_pretrained(folder, backbone)
        settings = {"file": folder.name, **prefix.header.settings}
        return Prompt(replace(prefix.header, method="imported", settings=settings, tasks=tasks), prefix.params)
    found = find_prompt(path, backbone, tensor)
    settings = {"file": Path(path).name, **found.known}
    header = plain_header("imported", settings, found.prompt, backbone, found.origin, tasks)
    return Prompt(header, {"prompt": found.prompt[None].clone()})


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


def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by dotted names; "" is a bare tensor or array. Whether they are finite is checked later."""
    if path.suffix == ".safetensors":
        return read_tensors(path, finite=False)
    data, kind = read_bytes(path, MOST_BYTES), ".npy" if path.suffix == ".npy" else ".pt"
    try:
        if kind == ".npy":
            if not data.startswith(b"\x93NUMPY"):
                several = "an archive of several arrays: save the one array"
                raise ValueError(several if data[:2] == b"PK" else "no numpy header")
            stream = io.BytesIO(data)
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(stream)
            claimed, held = prod(shape) * dtype.itemsize, len(data) - stream.tell()
            if min(shape, default=0) < 0 or claimed > held:  # before memory for them is asked for
                raise ValueError(f"its header claims {str(shape)[:100]} numbers, {claimed:,} bytes; it holds {held:,}")
            array = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:  # torch compresses none: a few bytes could be terabytes
                    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                        raise ValueError("its members are compressed, and torch.save compresses none")
            with warnings.catch_warnings(action="ignore"):  # of torch's, about pickles it then refuses
                return dict(named_tensors(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)))
    except Exception as error:  # damaged files raise half a dozen kinds
        if isinstance(error, pickle.UnpicklingError) or (kind == ".npy" and "pickle" in str(error)):
            raise ArtifactError(
                f"{path}: it holds Python objects, not numbers alone, or is no {kind} file; unpickling them could run "
                "code, so they are never opened: in the program that wrote it, save the tensor or array itself"
            ) from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ArtifactError(f"{path}: not a whole {kind} file ({reason[0][:300]}): copy it again") from error
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None:
        # numpy knows no bfloat16 and stores it as two raw bytes
        return {"": torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)}
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ArtifactError(
            f"{path}: its numbers are {array.dtype}; expected floating point: a prompt is a matrix of real numbers"
        )
    return {"": torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))}


def named_tensors(content: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested containers, whatever its shape, with its dotted name.

    Raises ValueError for tensors that are not ordinary ones, and for containers that hold themselves or go too deep.
    """
    if isinstance(content, Tensor):
        kind = "meta" if content.is_meta else "quantised" if content.is_quantized else str(content.layout)
        if kind != "torch.strided":
            raise ValueError(f"tensor {name or '(unnamed)'} is {kind}, not an ordinary one that holds its numbers")
        if content.numel() * content.element_size() > content.untyped_storage().nbytes():
            raise ValueError(f"tensor {name or '(unnamed)'} has {content.numel():,} entries, more than the file holds")
        yield name, content.detach()
    elif isinstance(content, Mapping | list | tuple):
        if depth == MOST_NESTED:
            raise ValueError(f"its containers are more than {MOST_NESTED} deep, or hold themselves")
        for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from named_tensors(value, f"{name}.{key}" if name else str(key), depth + 1)

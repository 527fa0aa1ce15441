"""A prompt in the forms that other tools read: PEFT, numpy, safetensors, or the vocabulary of the model itself."""

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from promptprior.artifacts import peft_format as peft
from promptprior.artifacts.artifact import README, Prior, Prompt, is_plain_prefix, prefix_shape
from promptprior.artifacts.as_matrix import single_prompt
from promptprior.artifacts.engines.gguf_file import check_convertible, write_gguf
from promptprior.artifacts.model_card import baked_card, model_card
from promptprior.backbone.added_tokens import BakedPrompt, write_baked
from promptprior.backbone.frozen import Frozen
from promptprior.errors import ArtifactError
from promptprior.files import replace_folder, write_bytes, write_json, write_tensors, write_text

ARRAY_FILE = "prompt.npy"
TENSORS_FILE = "prompt.safetensors"
BAKED_FILE = "promptprior_prompts.json"
GGUF_FILE = "model.gguf"


def export_prompt(artifact: Prior | Prompt, form: Literal["peft", "npy", "safetensors"], folder: Path | str) -> None:
    """Write one prompt, float32 [L, D], with a model card; the folder is whole or not there. Raises ArtifactError when
    the artifact is not one prompt, and when the folder holds other files."""
    folder, header = Path(folder), artifact.header
    is_prefix = form == "peft" and is_plain_prefix(artifact)
    if is_prefix:
        prompt = artifact.params["prompt"][0].detach().cpu().float()  # [L, W]
    else:
        prompt = single_prompt(artifact, f"the {header.kind} for {folder}")

    def write(target: Path) -> None:
        if is_prefix:
            peft.write_prefix(target, prompt, prefix_shape(header), header.backbone)
        elif form == "peft":
            peft.write_adapter(target, prompt, header.backbone)
        elif form == "npy":  # as Google's prompt-tuning reads it
            buffer = io.BytesIO()
            np.save(buffer, prompt.contiguous().numpy(), allow_pickle=False)
            write_bytes(target / ARRAY_FILE, buffer.getvalue())
        else:
            write_tensors(target / TENSORS_FILE, {"prompt": prompt})
        write_text(target / README, model_card(header, {"prompt": prompt[None]}, form == "peft", exported_as=form))

    replace_folder(folder, write)


def export_vocabulary(
    artifacts: Mapping[str, Prior | Prompt],
    frozen: Frozen,
    folder: Path | str,
    keep_tied: bool = False,
    as_gguf: bool = False,
) -> list[BakedPrompt]:
    """Write the backbone with prompts baked into its vocabulary, in the dtype it is loaded in.

    backbone/added_tokens.py says how, and what `keep_tied` is for. What was written is read again and compared before
    the folder takes its place. `as_gguf`: one file for llama.cpp in place of the model's files. Raises ArtifactError
    when an artifact is not one prompt or not this backbone's, and when the model cannot be served this way.
    """
    folder, prompts = Path(folder), {}
    for name, artifact in artifacts.items():
        artifact.header.backbone.check(frozen.card, f"prompt {name!r}")
        prompts[name] = single_prompt(artifact, f"prompt {name!r}")
    if not prompts:
        raise ArtifactError("no prompt to bake: name at least one")
    if as_gguf:  # before the model is written
        dtype = str(frozen.dtype).removeprefix("torch.")
        config = {**frozen.model.config.to_dict(), "architectures": [frozen.card.architecture], "dtype": dtype}
        backend = getattr(frozen.tokenizer, "backend_tokenizer", None)
        check_convertible(config, json.loads(backend.to_str()) if backend is not None else {})
    baked: list[BakedPrompt] = []

    def write(target: Path) -> None:
        model = target / "model" if as_gguf else target
        baked.extend(write_baked(frozen, prompts, model, keep_tied))
        if as_gguf:
            write_gguf(model, target / GGUF_FILE)
            shutil.rmtree(model)
        write_json(target / BAKED_FILE, {prompt.name: vars(prompt) for prompt in baked})
        headers = {name: artifact.header for name, artifact in artifacts.items()}
        write_text(target / README, baked_card(frozen.card, headers, baked, keep_tied, as_gguf))

    replace_folder(folder, write)
    return baked

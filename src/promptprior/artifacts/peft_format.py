"""PEFT's folders for one soft prompt, and for LoRA, written and read without PEFT (its format as of 0.21).

A prompt for an encoder-decoder is written as [L, D] with `num_transformer_submodules=1`; PEFT's own default
doubles the rows and uses only the first half.
"""

from pathlib import Path
from typing import Any

from promptprior.backbone.identity import BackboneCard
from promptprior.config.mapping import shorten
from promptprior.errors import ArtifactError
from promptprior.files import read_json, read_tensors, write_json, write_tensors
from promptprior.notation import Float, Mapping, Params, Tensor

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
TENSOR = "prompt_embeddings"
LORA_PREFIX = "base_model.model."
ADAPTER = ".default"  # the name PEFT gives an adapter, left out on disk
READABLE = ("PROMPT_TUNING", "P_TUNING", "CPT")  # all three save the prompt itself, [L, D]
TASK_TYPES = {False: "CAUSAL_LM", True: "SEQ_2_SEQ_LM"}  # by is_encoder_decoder


def write_adapter(folder: Path, prompt: Float[Tensor, "L D"], backbone: BackboneCard) -> None:
    """Write the two files of a PEFT prompt-tuning adapter."""
    config = {  # every key PEFT writes; it fills in those that are null from the model at load time
        **dict.fromkeys(("auto_mapping", "modules_to_save", "num_attention_heads", "num_layers", "peft_version")),
        **dict.fromkeys(("prompt_tuning_init_text", "revision", "tokenizer_kwargs", "tokenizer_name_or_path")),
        "base_model_name_or_path": backbone.name,
        "inference_mode": True,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prompt.shape[0],
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "task_type": TASK_TYPES[backbone.is_encoder_decoder],
        "token_dim": backbone.width,
    }
    write_json(folder / CONFIG_FILE, dict(sorted(config.items())))
    write_tensors(folder / TENSORS_FILE, {TENSOR: prompt})


def read_adapter(folder: Path) -> tuple[dict[str, Any], Float[Tensor, "L D"]]:
    """The config and the prompt, in float32, of a folder that PEFT (or `write_adapter`) wrote. Raises ArtifactError for
    adapters that are not one soft prompt, and for pickled weights."""
    path = folder / CONFIG_FILE
    config = read_json(path)
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ArtifactError(f"{path}: 'peft_type' is missing; this is not a PEFT adapter")
    if config["peft_type"] not in READABLE:
        raise ArtifactError(
            f"{path}: peft_type {shorten(repr(config['peft_type']))} cannot be read as a soft prompt; readable are "
            f"{', '.join(READABLE)}"
        )
    if config.get("task_type") not in (None, *TASK_TYPES.values()):
        raise ArtifactError(
            f"{path}: task_type {shorten(repr(config['task_type']))} needs a head that a prompt does not have; "
            f"readable are {', '.join(TASK_TYPES.values())}"
        )

    path = folder / TENSORS_FILE
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise ArtifactError(
            f"{folder}: its weights are a pickle (adapter_model.bin), which can run code and is never opened; load "
            "it with peft and call save_pretrained(..., safe_serialization=True)"
        )
    tensors = read_tensors(path)
    if tensors.keys() != {TENSOR}:
        raise ArtifactError(
            f"{path}: expected the one tensor {TENSOR!r}; found {', '.join(tensors)}; an adapter "
            "that also changes the model cannot be read as a prompt"
        )
    prompt, length = tensors[TENSOR], config.get("num_virtual_tokens")
    if not prompt.is_floating_point():
        raise ArtifactError(f"{path}: {TENSOR!r} holds {prompt.dtype}; expected floating point: copy the folder again")
    rows = (length, 2 * length) if type(length) is int else ()  # zero_shot has a prompt of no rows
    if prompt.ndim != 2 or prompt.shape[0] not in rows:
        raise ArtifactError(
            f"{path}: {TENSOR!r} has shape {list(prompt.shape)}; expected [num_virtual_tokens, "
            f"width] with the {shorten(length)} of {CONFIG_FILE}, or twice as many rows: copy the folder again"
        )
    return config, prompt[:length].float()  # the rows PEFT uses, also where it saved twice as many


def check_fits(config: dict[str, Any], prompt: Float[Tensor, "L D"], backbone: BackboneCard, where: Path) -> None:
    """Raise ArtifactError when an adapter is plainly for another backbone; PEFT keeps no fingerprint."""
    trained_on = f"load the backbone it was trained on ({config.get('base_model_name_or_path')})"
    task_type = config.get("task_type")
    if task_type not in (None, TASK_TYPES[backbone.is_encoder_decoder]):
        raise ArtifactError(
            f"{where} has task_type {task_type}; {backbone.name} is {TASK_TYPES[backbone.is_encoder_decoder]}: "
            f"{trained_on}"
        )
    if prompt.shape[1] != backbone.width:
        raise ArtifactError(f"{where} has width {prompt.shape[1]}; {backbone.name} has {backbone.width}: {trained_on}")


def write_lora(folder: Path, weights: Params, settings: Mapping[str, object], backbone: BackboneCard) -> None:
    """Write the two files of a PEFT LoRA adapter: one copy of weights, under the names that PEFT's layers have."""
    config = {
        "base_model_name_or_path": backbone.name,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": settings["alpha"],
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": settings["rank"],
        "target_modules": sorted({name.split(".lora_")[0].rpartition(".")[2] for name in weights}),
        "task_type": TASK_TYPES[backbone.is_encoder_decoder],
    }
    write_json(folder / CONFIG_FILE, config)
    tensors = {LORA_PREFIX + name.replace(ADAPTER, ""): value[0] for name, value in weights.items()}
    write_tensors(folder / TENSORS_FILE, tensors)


def read_lora(folder: Path) -> Params:
    """The weights that `write_lora` wrote, one copy, under their names in the model."""
    return {
        name.removeprefix(LORA_PREFIX).removesuffix(".weight") + ADAPTER + ".weight": value[None].clone()
        for name, value in read_tensors(folder / TENSORS_FILE).items()
    }

"""PEFT's folders for a soft prompt, a prefix, and LoRA, written and read without PEFT (its format as of 0.21).

A prompt for an encoder-decoder is written as [L, D] with `num_transformer_submodules=1`; PEFT's own default
doubles the rows and uses only the first half. A prefix is a matrix [L, W] whose rows have, layer after layer, the keys
and the values of a position. In an encoder-decoder of n layers PEFT gives layer i of the decoder what stands there for
layer 2 i modulo n: so such a prefix is always read, but written only where it has nothing else.
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
PREFIX = "PREFIX_TUNING"
READABLE = ("PROMPT_TUNING", "P_TUNING", "CPT", PREFIX)  # these save the prompt itself, [L, D], or the prefix, [L, W]
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


def write_prefix(
    folder: Path, prefix: Float[Tensor, "L W"], shape: tuple[int, int, int], backbone: BackboneCard
) -> None:
    """Write the two files of a PEFT prefix-tuning adapter; `shape` are its layers, heads and the width of a head."""
    depth, heads, head_width = shape
    config = {
        **dict.fromkeys(("auto_mapping", "init_weights", "modules_to_save", "peft_version", "revision")),
        "base_model_name_or_path": backbone.name,
        "encoder_hidden_size": heads * head_width,
        "inference_mode": True,
        "num_attention_heads": heads,
        "num_layers": depth,
        "num_transformer_submodules": 2 if backbone.is_encoder_decoder else 1,
        "num_virtual_tokens": prefix.shape[0],
        "peft_type": PREFIX,
        "prefix_projection": False,
        "task_type": TASK_TYPES[backbone.is_encoder_decoder],
        "token_dim": heads * head_width,
    }
    write_json(folder / CONFIG_FILE, dict(sorted(config.items())))
    stored = prefix.clone()  # the layers that PEFT reads nowhere stay as they are
    if backbone.is_encoder_decoder:
        by_layer = stored.unflatten(1, (depth, -1))
        by_layer[:, read_layers(depth)] = prefix.unflatten(1, (depth, -1))
    write_tensors(folder / TENSORS_FILE, {TENSOR: stored})


def read_layers(depth: int) -> list[int]:
    """For each layer of a decoder that has an encoder, the layer whose keys and values PEFT gives it. PEFT doubles its
    list of layers, for the cross-attention, and cuts it into as many pieces as there were, each with two layers."""
    return [2 * layer % depth for layer in range(depth)]


def prefix_settings(config: dict[str, Any], prefix: Float[Tensor, "L W"], path: Path) -> dict[str, int]:
    """The settings of a parameterisation `prefix` that a config says. Raises ArtifactError for a matrix of another."""
    depth, heads, width = (config.get(name) for name in ("num_layers", "num_attention_heads", "token_dim"))
    if not (type(depth) is type(heads) is type(width) is int) or heads < 1 or prefix.shape[1] != 2 * depth * width:
        raise ArtifactError(
            f"{path}: {TENSOR!r} has shape {list(prefix.shape)}; expected [num_virtual_tokens, 2 x num_layers x "
            f"token_dim] with the {shorten([depth, heads, width])} (layers, heads, width) of {CONFIG_FILE}: copy the "
            "folder again"
        )
    return {"length": prefix.shape[0], "depth": depth, "heads": heads, "head_width": width // heads}


def read_adapter(folder: Path) -> tuple[dict[str, Any], Float[Tensor, "L D"]]:
    """The config and the prompt, or the prefix [L, W] as the model's layers read it, in float32, of a folder that PEFT
    (or this module) wrote. Raises ArtifactError for adapters that are neither, and for pickled weights."""
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
    prompt = prompt[:length].float()  # the rows PEFT uses, also where it saved twice as many
    if config["peft_type"] == PREFIX:
        depth = prefix_settings(config, prompt, path)["depth"]
        if config.get("num_transformer_submodules") == 2:
            prompt = prompt.unflatten(1, (depth, -1))[:, read_layers(depth)].flatten(1)
    return config, prompt


def check_fits(config: dict[str, Any], prompt: Float[Tensor, "L D"], backbone: BackboneCard, where: Path) -> None:
    """Raise ArtifactError when an adapter is plainly for another backbone; PEFT keeps no fingerprint."""
    trained_on = f"load the backbone it was trained on ({config.get('base_model_name_or_path')})"
    task_type = config.get("task_type")
    if task_type not in (None, TASK_TYPES[backbone.is_encoder_decoder]):
        raise ArtifactError(
            f"{where} has task_type {task_type}; {backbone.name} is {TASK_TYPES[backbone.is_encoder_decoder]}: "
            f"{trained_on}"
        )
    if config["peft_type"] != PREFIX and prompt.shape[1] != backbone.width:
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

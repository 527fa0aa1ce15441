"""A Llama model folder, with prompts in its vocabulary, as one GGUF file for llama.cpp.

The package gguf names the tensors and keys and writes the file. What is left to know is how llama.cpp reads them:

    attention   it rotates pairs of neighbours where transformers rotates halves: rows of the query and key projections
                change places within every head
    tokenizer   `tokenizer.ggml.pre` names the rule that splits a text into words before merging; llama.cpp knows rules
                by name only, so the rule is found by comparing the tokenizer's own with those of PRE_TOKENIZERS
    begin       nothing is put before a text: the prompt's string holds the begin token, where there is one

Only what can be checked is written: an architecture or a tokenizer that this file does not know is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from promptprior.errors import ArtifactError
from promptprior.files import read_json, read_tensors

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # as torch and as gguf name them
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
PRE_TOKENIZERS: dict[str, list[dict[str, object]]] = {
    "gpt-2": [BYTES],
    "smollm": [DIGITS, BYTES],
    "llama-bpe": [SPLIT, {**BYTES, "use_regex": False}],
}
ADVICE = "export --format vocabulary and convert that folder by llama.cpp's convert_hf_to_gguf.py, or --format vllm"


def check_convertible(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> str:
    """The name that llama.cpp has for the tokenizer's way of splitting words.

    `config` is a model's config.json, `tokenizer` its tokenizer.json. Raises ArtifactError, before any work, for what
    `write_gguf` does not write. That is an architecture other than Llama, biases, scaled positions, a tokenizer that is
    not byte-level BPE or splits words by a rule that llama.cpp has no name for here, and numbers of another type.
    """
    architecture, model = next(iter(config.get("architectures") or ()), "none"), tokenizer.get("model", {})
    rope = config.get("rope_parameters") or {}
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    splits = tokenizer.get("pre_tokenizer") or {}
    steps = [
        {name: value for name, value in step.items() if name != "trim_offsets"}
        for step in splits.get("pretokenizers", [splits])
    ]
    rule = next((name for name, known in PRE_TOKENIZERS.items() if known == steps), "")
    fallback = " with bytes as a fallback" if model.get("byte_fallback") else ""
    normalizer = tokenizer.get("normalizer")
    refused = [
        (architecture != "LlamaForCausalLM", f"its architecture is {architecture}, not LlamaForCausalLM (SmolLM2, …)"),
        (config.get("attention_bias") or config.get("mlp_bias"), "its attention or feed-forward layers have biases"),
        (rope.get("rope_type", "default") != "default", f"its positions are scaled ({rope.get('rope_type')})"),
        (model.get("type") != "BPE" or fallback, f"its tokenizer is {model.get('type')}{fallback}, not byte-level BPE"),
        (normalizer is not None, f"its tokenizer changes texts first ({(normalizer or {}).get('type')})"),
        (not rule, f"its tokenizer splits words by a rule that is none of {', '.join(PRE_TOKENIZERS)}"),
        (dtype not in TYPES, f"its numbers are {dtype}, not one of {', '.join(TYPES)} (--dtype)"),
    ]
    if reason := next((reason for holds, reason in refused if holds), ""):
        raise ArtifactError(f"the model cannot be written as GGUF (--format llama.cpp): {reason}. Instead {ADVICE}")
    return rule


def write_gguf(folder: Path, file: Path) -> None:
    """Write the model in a folder, in the type that it is stored in, as a GGUF file; vectors are float32 as always.

    Raises ArtifactError for a model that `check_convertible` refuses, without the package gguf, and for a tensor that
    llama.cpp has no name for.
    """
    try:
        import gguf
    except ImportError as error:
        raise ArtifactError("writing GGUF (--format llama.cpp) needs a package: pip install gguf") from error
    config, tokenizer = read_json(folder / "config.json"), read_json(folder / "tokenizer.json")
    rule = check_convertible(config, tokenizer)
    heads, layers, width = (config[n] for n in ("num_attention_heads", "num_hidden_layers", "hidden_size"))
    key_heads, head_width = config.get("num_key_value_heads") or heads, config.get("head_dim") or width // heads
    kind = gguf.GGMLQuantizationType[TYPES[config["dtype"]]]
    numbers = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}[kind.name]

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(folder.resolve().name)
    writer.add_file_type(gguf.LlamaFileType[numbers])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    writer.add_rope_freq_base(float((config.get("rope_parameters") or {}).get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])

    # The vocabulary: an id without a token would shift all that follow
    tokens = {number: (word, gguf.TokenType.NORMAL) for word, number in tokenizer["model"]["vocab"].items()}
    for added in tokenizer["added_tokens"]:
        is_control = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]] = (added["content"], is_control)
    if sorted(tokens) != list(range(config["vocab_size"])):
        raise ArtifactError(
            f"{folder}: {len(tokens)} tokens for the {config['vocab_size']} rows of its table; {ADVICE}"
        )
    words, types = zip(*(tokens[number] for number in range(len(tokens))), strict=True)
    writer.add_tokenizer_model("gpt2")  # byte-level BPE, whatever the model
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(words)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=len(words))
    special.add_special_token = {"bos": False, "eos": False}
    special.add_to_gguf(writer, quiet=True)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for weights in sorted(folder.glob("*.safetensors")):
        for name, value in read_tensors(weights).items():
            if (written := names.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
                raise ArtifactError(f"{weights}: llama.cpp has no tensor like {name!r}; {ADVICE}")
            is_query, is_key = (name.endswith(f"{side}_proj.weight") for side in ("q", "k"))
            if is_query or is_key:  # halves of a head's rows become pairs of neighbours
                halves = value.unflatten(0, (heads if is_query else key_heads, 2, -1))  # [H, 2, d / 2, D]
                value = halves.transpose(1, 2).flatten(0, 2)
            data = value.to(torch.float32).numpy()
            of_type = kind if value.ndim > 1 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(written, gguf.quants.quantize(data, of_type), raw_dtype=of_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

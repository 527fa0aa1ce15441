"""Llama, Mistral and Qwen2 over a packed batch, block by hand-written block."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel

from promptprior.backbone.forward.causal import packed_inputs
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.attention import NO_PREFIX, LayerPrefix, StagePlan, causal_plans
from promptprior.backbone.kernels.block_vjp import Block, BlockRun, SharedInputs, run_blocks
from promptprior.backbone.kernels.elementwise import EAGER, Kernels
from promptprior.backbone.kernels.packed_model import packed_model
from promptprior.backbone.kernels.packing import Layout
from promptprior.backbone.key_values import Prompts
from promptprior.notation import Bool, Float, Tensor
from promptprior.tasks.sampling.batch import Batch

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")


def llama_block(layer: Any, model: PreTrainedModel) -> Block:
    """The weights of one decoder layer."""
    attention, mlp = layer.self_attn, layer.mlp
    return Block(
        norm=layer.input_layernorm.weight,
        q=attention.q_proj,
        k=attention.k_proj,
        v=attention.v_proj,
        o=attention.o_proj,
        mlp_norm=layer.post_attention_layernorm.weight,
        gate=mlp.gate_proj,
        up=mlp.up_proj,
        down=mlp.down_proj,
        eps=layer.input_layernorm.variance_epsilon,
        activation=model.config.hidden_act,
        heads=model.config.num_attention_heads,
        kv_heads=model.config.num_key_value_heads,
    )


def llama_states(
    frozen: Frozen,
    prompts: Prompts,
    batch: Batch,
    keep: bool = True,
    kernels: Kernels = EAGER,
    hidden: Bool[Tensor, "P L"] | None = None,
) -> Float[Tensor, "V D"]:
    """The final state that predicts each target token, row after row. Of the last layer only the states that predict
    something are computed. No text attends to the positions of its prefix that are `hidden`."""
    layout, tokens, words, prefixes = packed_inputs(frozen, prompts, batch, hidden)
    runs = list(block_runs(frozen, layout, words, prefixes, keep, kernels))
    runs[-1] = replace(runs[-1], rows=layout.predicting)
    x = run_blocks(torch.cat([tokens, words]), runs)
    return frozen.model.model.norm(x).index_select(0, layout.place_of_prediction)


def llama_layer_states(
    frozen: Frozen,
    prompts: Prompts,
    batch: Batch,
    layers: Collection[int],
    **options: Any,
) -> dict[int, Float[Tensor, "N D"]]:
    """The states of all packed tokens after so many blocks each, 0 what enters the first; behind the last block they
    are normed. Blocks above the highest are not run. `options` are those of `llama_states`."""
    layout, tokens, words, prefixes = packed_inputs(frozen, prompts, batch, options.get("hidden"))
    x, blocks = torch.cat([tokens, words]), frozen.model.config.num_hidden_layers
    states, keep, kernels = {0: x}, options.get("keep", True), options.get("kernels", EAGER)
    runs = block_runs(frozen, layout, words, prefixes, keep, kernels)
    for number, run in enumerate(islice(runs, max(layers)), start=1):
        x = states[number] = run_blocks(x, [run])
    if blocks in states:
        states[blocks] = frozen.model.model.norm(x)
    return {number: states[number] for number in layers}


def block_runs(
    frozen: Frozen,
    layout: Layout,
    words: Float[Tensor, "n D"],
    prefixes: Mapping[int, LayerPrefix],
    keep: bool,
    kernels: Kernels,
) -> Iterator[BlockRun]:
    """What each block needs to run over a packed batch, whose `words` stand behind its prompts."""
    model, decoder = frozen.model, frozen.model.model
    cos, sin = decoder.rotary_emb(words, position_ids=layout.position_ids[None])  # [1, N, d]
    half = cos.shape[-1] // 2
    key_rotary = (cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
    scale = decoder.layers[0].self_attn.scaling
    query_rotary = (key_rotary[0] * scale, key_rotary[1] * scale)

    layers = decoder.layers[: model.config.num_hidden_layers]
    is_mistral = type(model).__name__ == "MistralForCausalLM"
    # Only prompts are trained; the texts' embeddings are where an offset on them is trained too
    inputs = SharedInputs(trained=None if words.requires_grad else layout.prompt_tokens)
    # Masks, once for all layers with the same sliding window that have, or have no, prefix
    plans: dict[tuple[int | None, bool], list[StagePlan]] = {}
    for number, layer in enumerate(layers):
        window = model.config.sliding_window if is_mistral else getattr(layer.self_attn, "sliding_window", None)
        prefix = prefixes.get(number)
        kind = (window, prefix is not None)
        if kind not in plans:
            plans[kind] = causal_plans(layout, *kind)
        yield BlockRun(
            block=llama_block(layer, model),
            plans=plans[kind],
            inputs=SharedInputs() if number else inputs,
            query_rotary=query_rotary,
            key_rotary=key_rotary,
            keep=keep,
            plain=partial(_plain_layer, layer=layer, model=model, layout=layout, rotary=(cos, sin)),
            kernels=kernels,
            prefix=prefix,
        )


def _plain_layer(
    x: Float[Tensor, "N D"],
    *prefix: Tensor,
    layer: Any,
    model: PreTrainedModel,
    layout: Layout,
    rotary: tuple[Float[Tensor, "1 N d"], Float[Tensor, "1 N d"]],
) -> Float[Tensor, "N D"]:
    """The layer as transformers computes it, in operations that can be differentiated twice."""
    with packed_model(model, layout, {layer.self_attn.layer_idx: (prefix[0], prefix[1])} if prefix else NO_PREFIX):
        return layer(x[None], attention_mask=None, position_embeddings=rotary)[0]

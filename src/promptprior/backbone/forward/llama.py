"""Llama, Mistral and Qwen2 over a packed batch, block by hand-written block."""

from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.attention import StagePlan, causal_plans, packed_model
from promptprior.backbone.kernels.block_vjp import EAGER, Block, BlockRun, Kernels, SharedInputs, run_blocks
from promptprior.backbone.kernels.packing import Layout, on_device, plan
from promptprior.notation import Float, Tensor
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
    frozen: Frozen, prompts: Float[Tensor, "P L D"], batch: Batch, keep: bool = True, kernels: Kernels = EAGER
) -> Float[Tensor, "V D"]:
    """The final state that predicts each target token, row after row. Of the last layer only the states that predict
    something are computed."""
    model, decoder = frozen.model, frozen.model.model
    layout = on_device(plan(batch, prompts.shape[1]), frozen.device)
    used = prompts.to(frozen.device)[layout.used_prompts].to(frozen.dtype)
    words = frozen.embed(layout.token_ids)
    x = torch.cat([used.flatten(0, 1), words])  # [N, D]
    predicting, order = torch.unique(layout.predicts, return_inverse=True)

    cos, sin = decoder.rotary_emb(x, position_ids=layout.position_ids[None])  # [1, N, d]
    half = cos.shape[-1] // 2
    key_rotary = (cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
    scale = decoder.layers[0].self_attn.scaling
    query_rotary = (key_rotary[0] * scale, key_rotary[1] * scale)

    layers = decoder.layers[: model.config.num_hidden_layers]
    is_mistral = type(model).__name__ == "MistralForCausalLM"
    # Only prompts are trained; the texts' embeddings are where an offset on them is trained too
    inputs = SharedInputs(trained=None if words.requires_grad else layout.prompt_tokens)
    plans: dict[int | None, list[StagePlan]] = {}  # masks, once for all layers with the same sliding window
    runs = []
    for number, layer in enumerate(layers):
        window = model.config.sliding_window if is_mistral else getattr(layer.self_attn, "sliding_window", None)
        if window not in plans:
            plans[window] = causal_plans(layout, window)
        run = BlockRun(
            block=llama_block(layer, model),
            plans=plans[window],
            inputs=SharedInputs() if number else inputs,
            query_rotary=query_rotary,
            key_rotary=key_rotary,
            rows=predicting if number == len(layers) - 1 else None,
            keep=keep,
            plain=partial(_plain_layer, layer=layer, model=model, layout=layout, rotary=(cos, sin)),
            kernels=kernels,
        )
        runs.append(run)
    return decoder.norm(run_blocks(x, runs)).index_select(0, order)


def _plain_layer(
    x: Float[Tensor, "N D"],
    layer: Any,
    model: PreTrainedModel,
    layout: Layout,
    rotary: tuple[Float[Tensor, "1 N d"], Float[Tensor, "1 N d"]],
) -> Float[Tensor, "N D"]:
    """The layer as transformers computes it, in operations that can be differentiated twice."""
    with packed_model(model, layout):
        return layer(x[None], attention_mask=None, position_embeddings=rotary)[0]

"""The trunk of Llama, Mistral and Qwen2 over a packed batch, block by hand-written block."""

from functools import partial
from typing import Any

import torch
from torch.nn import Linear
from transformers import PreTrainedModel

from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.attention import packed_model
from promptprior.backbone.kernels.attention_vjp import StagePlan, causal_plans
from promptprior.backbone.kernels.block_vjp import ACTIVATIONS, EAGER, Block, Kernels, Pass, run_block
from promptprior.backbone.kernels.packing import Layout, plan
from promptprior.backbone.kernels.shared_inputs import Leading
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Batch

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")


def serves(model: PreTrainedModel) -> bool:
    """Whether this file knows the model: a family it was written for, with ordinary linear layers."""
    if type(model).__name__ not in FAMILIES or model.config.hidden_act not in ACTIVATIONS:
        return False
    return all(type(linear) is Linear for layer in model.model.layers for linear in block_of(layer, model).linears)


def block_of(layer: Any, model: PreTrainedModel) -> Block:
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
    """The final state that predicts each target token, row after row."""
    layout = plan(batch, prompts.shape[1]).to(frozen.device)
    used = prompts.to(frozen.device)[layout.used_prompts].to(frozen.dtype)
    words = frozen.embed(layout.token_ids)
    entry = Leading(None if words.requires_grad else layout.prompt_tokens)  # texts' embeddings are mostly frozen
    x = torch.cat([used.flatten(0, 1), words])
    trunk = frozen.model.model
    rows, order = torch.unique(layout.predicts, return_inverse=True)
    for work in passes(frozen.model, layout, x, entry, rows, keep, kernels):
        x = run_block(x, work)
    return trunk.norm(x).index_select(0, order)


def passes(
    model: PreTrainedModel, layout: Layout, x: Tensor, entry: Leading, rows: Tensor, keep: bool, kernels: Kernels
) -> list[Pass]:
    """One pass per layer. Of the last layer only the states that predict something are computed."""
    trunk = model.model
    cos, sin = trunk.rotary_emb(x, position_ids=layout.position_ids[None])
    half = cos.shape[-1] // 2
    key_rotary = (cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
    scale = trunk.layers[0].self_attn.scaling
    query_rotary = (key_rotary[0] * scale, key_rotary[1] * scale)
    plans: dict[int | None, list[StagePlan]] = {}
    made: list[Pass] = []
    for layer in trunk.layers[: model.config.num_hidden_layers]:
        window = window_of(layer, model)
        if window not in plans:
            plans[window] = causal_plans(layout, window)
        last = len(made) == model.config.num_hidden_layers - 1
        made.append(
            Pass(
                block=block_of(layer, model),
                plans=plans[window],
                entry=Leading() if made else entry,
                query_rotary=query_rotary,
                key_rotary=key_rotary,
                rows=rows if last else None,
                keep=keep,
                plain=partial(plain_layer, layer=layer, model=model, layout=layout, rotary=(cos, sin)),
                kernels=kernels,
            )
        )
    return made


def window_of(layer: Any, model: PreTrainedModel) -> int | None:
    """The sliding window of a layer, if it has one."""
    if type(model).__name__ == "MistralForCausalLM":
        return model.config.sliding_window
    return getattr(layer.self_attn, "sliding_window", None)


def plain_layer(
    x: Float[Tensor, "N D"],
    layer: Any,
    model: PreTrainedModel,
    layout: Layout,
    rotary: tuple[Float[Tensor, "1 N d"], Float[Tensor, "1 N d"]],
) -> Float[Tensor, "N D"]:
    """The layer as transformers computes it, in operations that can be differentiated twice."""
    with packed_model(model, layout):
        return layer(x[None], attention_mask=None, position_embeddings=rotary)[0]

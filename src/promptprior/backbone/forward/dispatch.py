"""Which of the exact routes serves a model: the fastest one that knows it and proves it on a small batch."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn import Linear

from promptprior.backbone.forward import llama, t5
from promptprior.backbone.forward.causal import concatenated_states, packed_states
from promptprior.backbone.forward.reference import reference_losses
from promptprior.backbone.forward.seq2seq import encoder_decoder_states
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.block_vjp import saved_entries
from promptprior.backbone.kernels.elementwise import ACTIVATIONS, compile_kernels
from promptprior.backbone.kernels.lm_head import state_losses
from promptprior.backbone.key_values import KeyValues, Prompts, cached_key_values
from promptprior.errors import PromptpriorWarning
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Tokens, collate

States = Callable[..., Float[Tensor, "V D"]]  # of (frozen, prompts, batch, keep=True)
# bfloat16: the reference itself is 3-15 % rounding on a probe this small; a wrong mask or position is 50 % off and more
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.05}
PLAIN_WIDTHS = 34  # what blocks under autograd keep of a token, in widths: fitted to Llama-like ones


def candidates(frozen: Frozen) -> Iterator[States]:
    """The routes that may serve a model, fastest first; the last always does.

    Hand-written blocks serve the families they were written for, with ordinary linear layers. In float16 T5 overflows:
    transformers clamps it, they do not.
    """
    model, family = frozen.model, type(frozen.model).__name__
    if frozen.card.is_encoder_decoder:
        half = model.dtype == torch.float16
        if family in t5.FAMILIES and not half and model.config.dense_act_fn in ACTIVATIONS:
            cross = [block.layer[1].EncDecAttention for block in model.decoder.block]
            read = [x for block in model.encoder.block for x in t5.t5_block(block, model).linears]
            if all(type(linear) is Linear for linear in (*read, *(x for c in cross for x in (c.k, c.v)))):
                yield t5.t5_states
        yield encoder_decoder_states
        return
    if family in llama.FAMILIES and model.config.hidden_act in ACTIVATIONS:
        read = [x for layer in model.model.layers for x in llama.llama_block(layer, model).linears]
        if all(type(linear) is Linear for linear in read):
            yield llama.llama_states
    if type(model)._can_set_attn_implementation():
        yield packed_states
    yield concatenated_states


def chosen_route(frozen: Frozen, recompute: bool, check: bool, fused: bool = False) -> States:
    """The first route that agrees with the slow reference on a small batch; warns when a faster one did not.

    `recompute` keeps only what enters each layer and computes the rest again in the backward pass; `fused` compiles
    what hand-written blocks do between products (nothing in other routes).
    """
    *fast, route = candidates(frozen)
    attempts: list[tuple[str, States]] = []
    for faster in fast:
        if fused and faster in (llama.llama_states, t5.t5_states):
            attempts.append((f"{faster.__name__}, compiled,", partial(faster, kernels=compile_kernels())))
        attempts.append((faster.__name__, faster))
    for name, faster in attempts:
        complaint = disagreement(frozen, faster) if check else None
        if complaint is None:
            route = faster
            break
        warnings.warn(
            f"{frozen.card.name} ({frozen.card.architecture}): the fast route {name} {complaint}; "
            "a slower one is used, results are unaffected. Please report the model.",
            PromptpriorWarning,
            stacklevel=2,
        )
    return partial(route, keep=False) if recompute else route


def plain_route(route: States) -> States:
    """The function of a route, without what it is to keep or hide."""
    return route.func if isinstance(route, partial) else route


def kept_per_token(frozen: Frozen, states: States) -> int:
    """How many numbers a route keeps of each token in one layer, for the backward pass."""
    model, route = frozen.model, plain_route(states)
    if route is llama.llama_states:
        return saved_entries(llama.llama_block(model.model.layers[0], model))
    if route is t5.t5_states:
        return saved_entries(t5.t5_block(model.encoder.block[0], model))
    return PLAIN_WIDTHS * frozen.card.width


@torch.enable_grad()
def disagreement(frozen: Frozen, route: States, of_prefixes: bool = False) -> str | None:
    """How a route differs from plain concatenation, in losses or prompt gradients; None where it does not. With
    `of_prefixes` it reads what the model caches of the prompts, and is compared with the model's own cache.

    The probe: two prompts and three ragged texts with two answers each, all of ordinary early tokens. Ordinary matters
    in half precision: after noise or special tokens the gradient of the slow reference itself is 30 % rounding
    (measured on SmolLM2 in bfloat16), after ordinary tokens 3 %.
    """
    generator = torch.Generator().manual_seed(0)
    special = set(frozen.tokenizer.all_special_ids)
    early = min(1000, frozen.model.get_input_embeddings().weight.shape[0])
    words = torch.tensor([i for i in range(early) if i not in special])
    # Drawn in this order: for each text its tokens, then those of its answers; last the prompts
    sizes = [n for text in (9, 4, 6) for n in (text, 2, 1)] + [5, 5]
    ids = [words[torch.randint(len(words), (n,), generator=generator)] for n in sizes]
    tuples = [tuple(x.tolist()) for x in ids]
    batch = collate([Tokens(tuples[i], (tuples[i + 1], tuples[i + 2])) for i in (0, 3, 6)], copies=[1, 0, 1])
    tokens = frozen.embed(torch.stack(ids[-2:])).detach().to(frozen.prompt_dtype)  # [2, 5, D]
    read: Prompts = cached_key_values(frozen, tokens) if of_prefixes else tokens
    leaves = [x.requires_grad_() for x in ((read.keys, read.values) if isinstance(read, KeyValues) else (read,))]

    def gradient_of(losses: Float[Tensor, " R"]) -> Float[Tensor, " n"]:
        return torch.cat([part.flatten() for part in torch.autograd.grad(losses.sum(), leaves)])

    expected = reference_losses(frozen, read, batch)
    expected_gradient = gradient_of(expected)
    try:
        losses = state_losses(frozen.model, route(frozen, read, batch), batch)
        gradient = gradient_of(losses)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        return f"fails ({error})"
    for what, left, right in (("losses", losses, expected), ("gradients", gradient, expected_gradient)):
        difference = float((left - right).detach().norm() / right.detach().norm())
        if not difference <= TOLERANCE[frozen.dtype]:
            return f"has {what} that differ from plain concatenation by {difference:.1e}"
    return None

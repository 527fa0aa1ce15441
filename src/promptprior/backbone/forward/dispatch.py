"""Which of the exact routes serves a model: the fastest one that knows it and proves it on a small batch."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from promptprior.backbone.forward import llama, t5
from promptprior.backbone.forward.causal import concatenated_states, packed_states
from promptprior.backbone.forward.reference import reference_losses
from promptprior.backbone.forward.seq2seq import encoder_decoder_states
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.kernels.block_vjp import compiled, kept_entries
from promptprior.backbone.kernels.lm_head import state_losses
from promptprior.notation import Float, Int, Tensor
from promptprior.tasks.sampling.batch import Batch, Tokens, collate

States = Callable[..., Float[Tensor, "V D"]]  # of (frozen, prompts, batch, keep=True)
# bfloat16: the twin itself is 3-15 % rounding on a probe this small; a wrong mask or position is off by 50 % and more
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.05}
PLAIN_WIDTHS = 34  # what blocks under autograd keep of a token, in widths: fitted to Llama-like ones


def candidates(frozen: Frozen) -> Iterator[States]:
    """The routes that may serve a model, fastest first; the last always does."""
    if frozen.card.is_encoder_decoder:
        if t5.serves(frozen.model):
            yield t5.t5_states
        yield encoder_decoder_states
        return
    if llama.serves(frozen.model):
        yield llama.llama_states
    if type(frozen.model)._can_set_attn_implementation():
        yield packed_states
    yield concatenated_states


def chosen_route(frozen: Frozen, recompute: bool, check: bool, fused: bool = False) -> States:
    """The first route that agrees with the slow reference on a small batch; warns when a faster one did not.

    `recompute` keeps only what enters each layer and computes the rest again in the backward pass; `fused` compiles
    what hand-written blocks do between products (nothing in other routes).
    """
    *fast, last = candidates(frozen)
    for route in with_compiled(fast) if fused else fast:
        complaint = disagreement(frozen, route) if check else None
        if complaint is None:
            return partial(route, keep=False) if recompute else route
        warnings.warn(
            f"{frozen.card.name} ({frozen.card.architecture}): the fast route {name_of(route)} {complaint}; "
            "a slower one is used, results are unaffected. Please report the model.",
            stacklevel=2,
        )
    return partial(last, keep=False) if recompute else last


def with_compiled(routes: Iterable[States]) -> Iterator[States]:
    """Before each hand-written route, the same one compiled."""
    for route in routes:
        if route in (llama.llama_states, t5.t5_states):
            yield partial(route, kernels=compiled())
        yield route


def name_of(route: States) -> str:
    """A route's name, for warnings."""
    return f"{route.func.__name__}, compiled," if isinstance(route, partial) else route.__name__


def twice_differentiated(states: States) -> States:
    """The route to take where the gradient will itself be differentiated.

    Blocks with gradients written by hand would run their plain twin in the backward pass, on top of their own forward
    pass; taking the plain route at once saves a third of a Hessian product (6.3 to 4.4 s of CPU on SmolLM2, 8 rows).
    """
    if isinstance(states, partial):
        inner = twice_differentiated(states.func)
        fits = states.keywords if inner is states.func else {k: v for k, v in states.keywords.items() if k == "keep"}
        return partial(inner, **fits)
    return packed_states if states is llama.llama_states else states


def kept_per_token(frozen: Frozen, states: States) -> int:
    """How many numbers a route keeps of each token in one layer, for the backward pass."""
    model, route = frozen.model, states.func if isinstance(states, partial) else states
    if route is llama.llama_states:
        return kept_entries(llama.block_of(model.model.layers[0], model))
    if route is t5.t5_states:
        return kept_entries(t5.block_of(model.encoder.block[0], model))
    return PLAIN_WIDTHS * frozen.card.width


def disagreement(frozen: Frozen, route: States) -> str | None:
    """How a route differs from plain concatenation, in losses or prompt gradients; None where it does not."""
    prompts, batch = probe(frozen)
    expected = with_gradient(reference_losses(frozen, prompts, batch), prompts)
    try:
        found = with_gradient(losses_by(frozen, route, prompts, batch), prompts)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        return f"fails ({error})"
    for what, left, right in zip(("losses", "gradients"), found, expected, strict=True):
        apart = float((left - right).norm() / right.norm())
        if not apart <= TOLERANCE[frozen.dtype]:
            return f"has {what} that differ from plain concatenation by {apart:.1e}"
    return None


def with_gradient(losses: Float[Tensor, " R"], prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and the prompts' gradient of their sum."""
    return losses.detach(), torch.autograd.grad(losses.sum(), prompts)[0]


def probe(frozen: Frozen) -> tuple[Float[Tensor, "P L D"], Batch]:
    """Two prompts and three ragged texts with two answers each, all made of ordinary early tokens.

    Ordinary matters in half precision: after noise or special tokens the gradient of the slow twin itself is 30 %
    rounding (measured on SmolLM2 in bfloat16), after ordinary tokens 3 %.
    """
    generator = torch.Generator().manual_seed(0)
    special = set(frozen.tokenizer.all_special_ids)
    early = min(1000, frozen.model.get_input_embeddings().weight.shape[0])
    words = torch.tensor([i for i in range(early) if i not in special])

    def ids(count: int) -> Int[Tensor, " n"]:
        return words[torch.randint(len(words), (count,), generator=generator)]

    def some(count: int) -> tuple[int, ...]:
        return tuple(ids(count).tolist())

    items = [Tokens(some(size), (some(2), some(1))) for size in (9, 4, 6)]
    prompts = frozen.embed(torch.stack([ids(5), ids(5)])).detach().to(frozen.prompt_dtype)
    return prompts.requires_grad_(), collate(items, copies=[1, 0, 1])


def losses_by(frozen: Frozen, route: States, prompts: Float[Tensor, "P L D"], batch: Batch) -> Float[Tensor, " R"]:
    """Mean negative log-likelihood of each row's target, by a route."""
    return state_losses(frozen.model, route(frozen, prompts, batch), batch)

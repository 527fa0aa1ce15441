"""From the states that predict target tokens to each row's loss. Nothing else ever meets the vocabulary."""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from promptprior.notation import Float, Int, Tensor
from promptprior.tasks.sampling.batch import Batch

LOGITS_AT_ONCE = 2**26  # entries: 256 MiB in float32


def logits(model: PreTrainedModel, states: Float[Tensor, "V D"]) -> Float[Tensor, "V vocabulary"]:
    """The model's own next-token logits for some final states, in at least float32.

    `states` is made contiguous and two-dimensional: a strided slice would send the product down a slow path that
    copies the whole head (half of a bfloat16 forward pass).
    """
    config = model.config.get_text_config()
    if config.is_encoder_decoder and config.tie_word_embeddings and getattr(config, "scale_decoder_outputs", False):
        states = states * config.d_model**-0.5
    out = model.get_output_embeddings()(states.contiguous())
    bias = getattr(model, "final_logits_bias", None)  # BART
    out = out if bias is None else out + bias.to(out.dtype)
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
    out = out if cap is None else torch.tanh(out / cap) * cap
    scale = getattr(model, "logit_scale", None)  # Cohere multiplies
    out = out if scale is None else out * scale
    scaling = getattr(config, "logits_scaling", None)  # Granite divides
    out = out if scaling is None else out / scaling
    return out.to(torch.promote_types(out.dtype, torch.float32))


def state_losses(model: PreTrainedModel, states: Float[Tensor, "V D"], batch: Batch) -> Float[Tensor, " R"]:
    """Mean negative log-likelihood of each row's target, from the states that predict its tokens."""
    targets = batch.target_ids[torch.arange(batch.target_ids.shape[1]) < batch.target_lengths[:, None]]
    return row_means(token_nll(model, states, targets.to(states.device)), batch.target_lengths.to(states.device))


def token_nll(model: PreTrainedModel, states: Float[Tensor, "V D"], targets: Int[Tensor, " V"]) -> Float[Tensor, " V"]:
    """Negative log-likelihood of each target token."""
    return in_pieces(piece_nll, model, states, targets)


def token_divergence(
    model: PreTrainedModel, states: Float[Tensor, "V D"], others: Float[Tensor, "V D"]
) -> Float[Tensor, " V"]:
    """KL(p || q) of next tokens, p as `others` predict them and q as `states` do. `others` get no gradient."""
    return in_pieces(piece_divergence, model, states, others.detach())


def in_pieces(
    values_of: Callable[[PreTrainedModel, Tensor, Tensor], Float[Tensor, " v"]],
    model: PreTrainedModel,
    states: Float[Tensor, "V D"],
    beside: Tensor,
) -> Float[Tensor, " V"]:
    """A value for every state and what stands beside it.

    Many states go through the head in pieces whose logits are computed again in the backward pass.
    """
    step = max(1, LOGITS_AT_ONCE // model.get_output_embeddings().weight.shape[0])
    if len(states) <= step:
        return values_of(model, states, beside)
    pieces = zip(states.split(step), beside.split(step), strict=True)
    return torch.cat([checkpoint(values_of, model, s, b, use_reentrant=False) for s, b in pieces])


def piece_nll(model: PreTrainedModel, states: Float[Tensor, "V D"], targets: Int[Tensor, " V"]) -> Float[Tensor, " V"]:
    """Negative log-likelihood of each target token, all at once."""
    return cross_entropy(logits(model, states), targets, reduction="none")


def piece_divergence(
    model: PreTrainedModel, states: Float[Tensor, "V D"], others: Float[Tensor, "V D"]
) -> Float[Tensor, " V"]:
    """KL(p || q) of next tokens, all at once."""
    q = torch.log_softmax(logits(model, states), dim=-1)
    with torch.no_grad():
        p = torch.log_softmax(logits(model, others), dim=-1)
    return kl_div(q, p, reduction="none", log_target=True).sum(-1)


def row_means(values: Float[Tensor, " V"], lengths: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
    """The mean over each row's tokens, for tokens that stand row after row."""
    row = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
    return values.new_zeros(len(lengths)).index_add(0, row, values) / lengths

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

    `states` is made contiguous and two-dimensional: a slice with strides would send the product down a slow path that
    copies the whole head (half of a bfloat16 forward pass).
    """
    config = model.config.get_text_config()
    if config.is_encoder_decoder and config.tie_word_embeddings and getattr(config, "scale_decoder_outputs", False):
        states = states * config.d_model**-0.5
    out = model.get_output_embeddings()(states.contiguous())
    if (bias := getattr(model, "final_logits_bias", None)) is not None:  # BART
        out = out + bias.to(out.dtype)
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2 and 3
        out = torch.tanh(out / cap) * cap
    if (scale := getattr(model, "logit_scale", None)) is not None:  # Cohere multiplies
        out = out * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite divides
        out = out / scaling
    return out.to(torch.promote_types(out.dtype, torch.float32))


def state_losses(model: PreTrainedModel, states: Float[Tensor, "V D"], batch: Batch) -> Float[Tensor, " R"]:
    """Mean negative log-likelihood of each row's target, in nats, from the states that predict its tokens."""
    targets = batch.target_ids[torch.arange(batch.target_ids.shape[1]) < batch.target_lengths[:, None]]
    nll = _in_pieces(
        lambda piece, ids: cross_entropy(logits(model, piece), ids, reduction="none"),
        model,
        states,
        targets.to(states.device),
    )
    return row_means(nll, batch.target_lengths)


def token_divergence(
    model: PreTrainedModel, states: Float[Tensor, "V D"], others: Float[Tensor, "V D"]
) -> Float[Tensor, " V"]:
    """KL(p || q) of next tokens in nats, p as `others` predict them and q as `states` do. `others` get no gradient."""

    def piece_divergence(states: Float[Tensor, "v D"], others: Float[Tensor, "v D"]) -> Float[Tensor, " v"]:
        q = torch.log_softmax(logits(model, states), dim=-1)
        with torch.no_grad():
            p = torch.log_softmax(logits(model, others), dim=-1)
        return kl_div(q, p, reduction="none", log_target=True).sum(-1)

    return _in_pieces(piece_divergence, model, states, others.detach())


def _in_pieces(
    values_of: Callable[[Tensor, Tensor], Float[Tensor, " v"]],
    model: PreTrainedModel,
    states: Float[Tensor, "V D"],
    beside: Tensor,
) -> Float[Tensor, " V"]:
    """A value for every state and what stands beside it. Many states go through the head in pieces whose logits are
    computed again in the backward pass."""
    step = max(1, LOGITS_AT_ONCE // model.get_output_embeddings().weight.shape[0])
    if len(states) <= step:
        return values_of(states, beside)
    pieces = zip(states.split(step), beside.split(step), strict=True)
    return torch.cat([checkpoint(values_of, s, b, use_reentrant=False) for s, b in pieces])


def row_means(values: Float[Tensor, " V"], lengths: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
    """The mean over each row's tokens, for tokens that stand row after row."""
    row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    means = values.new_zeros(len(lengths)).index_add(0, row.to(values.device), values)
    return means / lengths.to(values.device)

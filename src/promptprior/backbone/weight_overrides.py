"""A model some of whose weights come from outside, by name: LoRA, BitFit and fine-tuning.

The backbone is never written to. Weights replace the model's for the length of one call (torch's `functional_call`);
LoRA's layers stand in a shared-weight copy, which has modules of its own and the same weights in memory.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch.func import functional_call

from promptprior.backbone.engine import Backbone
from promptprior.backbone.forward.dispatch import States, candidates, disagreement
from promptprior.backbone.forward.llama import llama_states
from promptprior.backbone.forward.t5 import t5_states
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.generate import GenerationOptions, generate_texts
from promptprior.backbone.kernels.lm_head import state_losses
from promptprior.backbone.text_states import Site, pooled_states
from promptprior.errors import SpecError
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Batch

Weights = Mapping[str, Tensor]
"""Tensors by the names the model has for them."""

Which = Literal["vectors", "biases", "all"]
Answer = TypeVar("Answer")


class _FunctionalCall(torch.nn.Sequential):
    """A module whose forward pass is any function, so that torch can replace the weights of the model inside it."""

    def forward(self, function: Callable[[], Answer]) -> Answer:
        return function()


@dataclass(frozen=True, eq=False)
class WeightedModel:
    """A backbone under other weights. `start` are those weights as they stand, in what they are computed in. No prompt
    is read: texts stand by themselves, as for zero_shot. Work is counted by the backbone's own meter."""

    backbone: Backbone
    frozen: Frozen
    states: States
    start: Weights
    length: int = 0  # no tokens stand in front of a text

    def losses(self, weights: Weights, batch: Batch) -> Float[Tensor, " R"]:
        """Mean negative log-likelihood of each row's target, in nats per token, in pieces that fit into memory."""
        model, frozen, states = self.frozen.model, self.frozen, self.states
        pieces = self._each_piece(
            weights, batch, lambda prompt, piece: state_losses(model, states(frozen, prompt, piece), piece)
        )
        return torch.cat(pieces)

    def text_states(self, weights: Weights, batch: Batch, sites: Sequence[Site]) -> Float[Tensor, "X S W"]:
        """Each text's states, pooled at every site, as `Backbone.text_states` reads them without a prompt."""
        frozen, route = self.frozen, self.states
        share = max((site.layer for site in sites), default=0) / self.backbone.layers
        pieces = self._each_piece(
            weights,
            batch.texts_only(),
            lambda prompt, piece: pooled_states(frozen, route, prompt, piece, sites),
            share,
        )
        return torch.cat(pieces)

    def generate(self, weights: Weights, batch: Batch, max_new_tokens: int) -> list[str]:
        """The first line of greedy text after each of the batch's texts."""
        options = GenerationOptions(max_new_tokens, first_line=True)
        pieces = self._each_piece(
            weights, batch, lambda prompt, piece: generate_texts(self.frozen, prompt, piece, options)
        )
        return [text for piece in pieces for text in piece]

    def _each_piece(
        self,
        weights: Weights,
        batch: Batch,
        compute: Callable[[Tensor, Batch], Answer],
        share: float | None = None,
    ) -> list[Answer]:
        # What `compute` makes of a prompt of no tokens, [1, 0, D], and each piece of the batch, while the model has
        # these weights; its own are back afterwards, whatever happens. Where texts alone are read, `share` is that of
        # the layers that read them.
        shape = (1, 0, self.backbone.width)
        no_prompt = torch.zeros(shape, dtype=self.frozen.prompt_dtype, device=self.frozen.device)
        pieces = list(self.backbone.split(batch.reading(torch.zeros_like(batch.prompt_index)), 0))
        named = {f"0.{name}": value.to(self.start[name].dtype) for name, value in weights.items()}
        meter = self.backbone.meter

        def compute_and_count() -> list[Answer]:
            answers = []
            for piece in pieces:
                answers.append(compute(no_prompt, piece))
                if share is None:
                    meter.count(piece, 0)
                else:
                    meter.count_texts(piece, 0, share)
            return answers

        return functional_call(_FunctionalCall(self.frozen.model), named, (compute_and_count,))


def lora_model(backbone: Backbone, rank: int, alpha: float, modules: Sequence[str]) -> WeightedModel:
    """A shared-weight copy of the model with PEFT's LoRA layers (Hu et al. 2021) on some linear modules.

    Without `modules` PEFT's own choice for the family: queries and values where they are layers of their own. Raises
    SpecError when peft is missing, or knows no such modules.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SpecError("the method lora needs a package: pip install 'promptprior[peft]'") from error
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(modules) or None)
    shared = backbone.frozen.model
    model: Any = copy.deepcopy(shared, {id(tensor): tensor for tensor in (*shared.parameters(), *shared.buffers())})
    try:
        with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):  # PEFT draws a start that nobody reads
            inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise SpecError(f"modules {', '.join(modules) or 'by default'} (--options.lora.modules): {error}") from error
    frozen = Frozen(model, backbone.frozen.tokenizer, backbone.frozen.card)
    weights = {name: weight.detach() for name, weight in model.named_parameters() if ".lora_" in name}
    if other := [name for name in weights if ".lora_A." not in name and ".lora_B." not in name]:
        raise SpecError(
            f"modules (--options.lora.modules): {other[0].split('.lora_')[0]} is not linear; name linear ones"
        )
    start = {name: torch.zeros_like(weight, dtype=frozen.prompt_dtype) for name, weight in weights.items()}
    return WeightedModel(backbone, frozen, weight_route(frozen), start)


def weight_route(frozen: Frozen) -> States:
    """The fastest exact route whose gradient reaches the weights; those written by hand give it to prompts alone."""
    *fast, last = (route for route in candidates(frozen) if route not in (llama_states, t5_states))
    with torch.enable_grad():  # an evaluation may be the first to ask
        return next((route for route in fast if disagreement(frozen, route) is None), last)

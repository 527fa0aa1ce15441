"""A trunk some of whose weights come from outside, by name: what LoRA and other references are computed with.

The backbone is never written to. Weights are lent to the model for the length of one call; LoRA's layers stand in a
twin that shares every weight with the model and has modules of its own.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, TypeVar

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from promptprior.backbone.engine import Backbone
from promptprior.backbone.forward.dispatch import States, candidates, disagreement, losses_by
from promptprior.backbone.forward.llama import llama_states
from promptprior.backbone.forward.t5 import t5_states
from promptprior.backbone.frozen import Frozen
from promptprior.backbone.generate import generated
from promptprior.errors import SpecError
from promptprior.notation import Float, Tensor
from promptprior.tasks.sampling.batch import Batch

Weights = Mapping[str, Tensor]
"""Tensors by the names the model has for them."""

Which = Literal["vectors", "biases"]
Answer = TypeVar("Answer")


@dataclass(frozen=True, eq=False)
class Trunk:
    """A backbone that is lent weights. `start` are those weights as they stand, in what they are computed in.

    No prompt is read: texts stand alone, as for zero_shot. Work is counted by the backbone's own meter.
    """

    backbone: Backbone
    frozen: Frozen
    states: States
    start: Weights
    length: int = 0  # no tokens stand in front of a text

    def losses(self, weights: Weights, batch: Batch) -> Float[Tensor, " R"]:
        """Mean negative log-likelihood of each row's target, in nats per token, in pieces that fit into memory."""

        def piece_losses(piece: Batch) -> Float[Tensor, " R"]:
            self.backbone.meter.count(piece, 0)
            return losses_by(self.frozen, self.states, self.nothing, piece)

        pieces = self.backbone.split(alone(batch), 0)
        return torch.cat(self.lent(weights, lambda: [piece_losses(piece) for piece in pieces]))

    def generate(self, weights: Weights, batch: Batch, max_new_tokens: int) -> list[str]:
        """The first line of greedy text after each of the batch's texts."""

        def texts() -> Iterator[str]:
            for piece in self.backbone.split(alone(batch), 0):
                self.backbone.meter.count(piece, 0)
                yield from generated(self.frozen, self.nothing, piece, max_new_tokens, 1, first_line=True)

        return self.lent(weights, lambda: list(texts()))

    @property
    def nothing(self) -> Float[Tensor, "1 0 D"]:
        """One prompt of no tokens."""
        return torch.zeros(1, 0, self.backbone.width, dtype=self.frozen.prompt_dtype, device=self.frozen.device)

    def lent(self, weights: Weights, ask: Callable[[], Answer]) -> Answer:
        """What `ask` comes to while the model has these weights; its own are back afterwards, whatever happens."""
        named = {f"model.{name}": value.to(self.start[name].dtype) for name, value in weights.items()}
        return functional_call(Borrower(self.frozen.model), named, (ask,))


class Borrower(torch.nn.Module):
    """A model as the part of a module whose forward pass is any question, so that torch can lend it weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ask: Callable[[], Answer]) -> Answer:
        """Ask."""
        return ask()


def alone(batch: Batch) -> Batch:
    """The same texts, all reading the one prompt of no tokens."""
    return batch.reading(torch.zeros_like(batch.prompt_index))


def open_route(frozen: Frozen) -> States:
    """The fastest exact route whose gradient reaches the weights; those written by hand give it to prompts alone."""
    *fast, last = (route for route in candidates(frozen) if route not in (llama_states, t5_states))
    with torch.enable_grad():  # an exam may be the first to ask
        return next((route for route in fast if disagreement(frozen, route) is None), last)


def own_trunk(backbone: Backbone, which: Which) -> Trunk:
    """A trunk that is lent its own biases, or all its vectors: biases and the scales of norms.

    Raises SpecError for biases of a model without any.
    """
    frozen = backbone.frozen
    start = {
        name: weight.detach()
        for name, weight in frozen.model.named_parameters()
        if weight.dim() == 1 and (which == "vectors" or name.endswith(".bias"))
    }
    if not start:
        raise SpecError(
            f"{frozen.card.name} ({frozen.card.architecture}) has no biases to train: use "
            "--options.bitfit.which vectors"
        )
    return Trunk(backbone, frozen, open_route(frozen), start)


def lora_trunk(backbone: Backbone, rank: int, alpha: float, modules: Sequence[str]) -> Trunk:
    """A trunk with PEFT's LoRA layers (Hu et al. 2021) on some linear modules, in a twin of the model.

    Without `modules` PEFT's own choice for the family: queries and values where they are layers of their own. Raises
    SpecError when peft is missing, or knows no such modules.
    """
    inject, settings = peft_lora(rank, alpha, modules)
    model = twin(backbone.frozen.model)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):  # PEFT draws a start that nobody reads
            inject(settings, model)
    except ValueError as error:
        raise SpecError(f"modules {', '.join(modules) or 'by default'} (--options.lora.modules): {error}") from error
    frozen = Frozen(model, backbone.frozen.tokenizer, backbone.frozen.card)
    weights = {name: weight.detach() for name, weight in model.named_parameters() if ".lora_" in name}
    if other := [name for name in weights if ".lora_A." not in name and ".lora_B." not in name]:
        raise SpecError(
            f"modules (--options.lora.modules): {other[0].split('.lora_')[0]} is not linear; name linear ones"
        )
    start = {name: torch.zeros_like(weight, dtype=frozen.prompt_dtype) for name, weight in weights.items()}
    return Trunk(backbone, frozen, open_route(frozen), start)


def peft_lora(rank: int, alpha: float, modules: Sequence[str]) -> tuple[Callable[..., Any], Any]:
    """PEFT's function that puts layers into a model, and the settings of LoRA's."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SpecError("the method lora needs a package: pip install 'promptprior[peft]'") from error
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(modules) or None)
    return inject_adapter_in_model, settings


def lora_start(trunk: Trunk, generator: torch.Generator) -> dict[str, Tensor]:
    """LoRA's usual start, drawn on the CPU: A uniform within one over the square root of its input, B zero."""
    start = {}
    for name, weight in trunk.start.items():
        drawn = torch.zeros(weight.shape, dtype=weight.dtype)
        if ".lora_A." in name:
            torch.nn.init.kaiming_uniform_(drawn, a=sqrt(5), generator=generator)
        start[name] = drawn.to(weight.device)
    return start


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model with modules of its own and the very same weights."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})

"""The parameterisation `mixture`: every text reads its task's prompt plus the sources it attends to (ATTEMPT).

Asai et al. 2022 (EMNLP, arXiv 2205.11961), as their code computes it:

    q_x = maximum (or mean) of the text's word embeddings over its own positions, less `centre` (ours)
    h_x = LayerNorm(up SiLU(down q_x))
    a_x = softmax over j of  h_x . (maximum of P_j over its tokens) / temperature,   j the sources, and the task itself
    prompt of x = P_task + sum_j a_xj P_j

Source prompts are never trained: they are detached, whatever rule moves the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import layer_norm, one_hot, silu

from promptprior.backbone import Backbone
from promptprior.errors import SpecError
from promptprior.notation import Float, Int, Params, Tensor
from promptprior.parameterisations.bank_diagnostics import short
from promptprior.parameterisations.text_queries import Query, pooled
from promptprior.tasks.sampling.batch import Batch, Tokens, collate

Attends = Literal["all", "sources"]
NETWORK = ("down", "up", "gain", "shift")  # the tensors of the attention network


@dataclass(frozen=True)
class Mixture:
    """Prompts of S sources, mixed anew for every text.

    params: "target" Float[C, K, L, D], one prompt per task, or K = 1 for all; "sources" Float[C, S, L, D]; of the
    attention network "down" Float[C, D, r], "up" Float[C, r, D], "gain" and "shift" Float[C, D] (of its LayerNorm).
    Optional: "centre" Float[C, D], taken from queries before the network.

    `names`: what the sources are called. `attends`: all, sources and the task's own prompt (as released), or sources.
    Relative numbers are free of a backbone's scale: queries are divided by the embedding scale, and scores by
    temperature * sqrt(D) * (root mean square of the pooled source prompts), so that temperature 1 gives scores of about
    one. `absolute` takes queries and temperature as they are (as released). Raises SpecError for a temperature of 0.
    """

    backbone: Backbone
    length: int
    names: Sequence[str]
    query: Query = "max"
    attends: Attends = "all"
    temperature: float = 1.0
    absolute: bool = False
    name: str = "mixture"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise SpecError(f"temperature {self.temperature} (--options.temperature): expected a positive number")

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "X L D"], Int[Tensor, " X"]]:
        """One prompt per text."""
        sources = params["sources"].detach()
        a, count = self.attention(params, batch), sources.shape[1]
        mixed = by_copy(a[:, :count], sources.flatten(2), batch.copy_index.to(a.device))
        own = 1 + a[:, count:].sum(1)  # P_task, and its share of the mixture where it attends to itself
        made = own[:, None, None] * targets(params, batch) + mixed.unflatten(1, (self.length, -1))
        return made, torch.arange(batch.texts)

    def attention(self, params: Params, batch: Batch) -> Float[Tensor, "X J"]:
        """How much each text takes of every source and, last, of its task's own prompt where that takes part."""
        keys = params["sources"].detach().amax(2)
        copy = batch.copy_index.to(keys.device)
        h = self.queries(params, batch)
        scores = by_copy(h, keys.transpose(1, 2), copy)
        if self.attends == "all":
            own = (h * targets(params, batch).amax(1)).sum(1, keepdim=True)
            scores = torch.cat([scores, own], dim=1)
        return torch.softmax(scores / self.divisor(keys)[copy, None], dim=1)

    def queries(self, params: Params, batch: Batch) -> Float[Tensor, "X D"]:
        """What the attention network makes of each text."""
        device = params["down"].device
        copy = batch.copy_index.to(device)
        q = pooled(self.backbone, batch, self.query).to(params["down"])
        q = q - params["centre"][copy] if "centre" in params else q
        q = q if self.absolute else q / self.backbone.scale
        hidden = silu(by_copy(q, params["down"], copy))
        h = layer_norm(by_copy(hidden, params["up"], copy), q.shape[-1:])
        return h * params["gain"][copy] + params["shift"][copy]

    def divisor(self, keys: Float[Tensor, "C S D"]) -> Float[Tensor, " C"]:
        """What each copy's scores are divided by."""
        if self.absolute:
            return keys.new_full((len(keys),), self.temperature)
        return self.temperature * keys.shape[-1] ** 0.5 * keys.square().mean((1, 2)).sqrt()

    @torch.no_grad()
    def diagnose(self, params: Params, texts: Mapping[str, Sequence[Tokens]]) -> Mapping[str, object]:
        """What texts of each task attend to: the mean weight of every source, and how much texts differ.

        `entropy` in bits, of the mean weights; `varies`, the largest standard deviation of a weight over texts: 0 says
        that attention does not look at the text.
        """
        return {"attention": {task: self.attended(params, collate(some)) for task, some in texts.items()}}

    def attended(self, params: Params, batch: Batch) -> dict[str, object]:
        """Mean weights of some texts, their entropy, and how much they vary."""
        a = self.attention(params, batch).double().cpu()
        mean = a.mean(0)
        names = [*self.names, "target"][: len(mean)]
        entropy = float(-(mean * mean.clamp(min=1e-300).log2()).sum())
        return {
            "weights": {name: short(weight) for name, weight in zip(names, mean.tolist(), strict=True)},
            "entropy": short(entropy),
            "varies": short(float(a.std(0, correction=0).max())),
        }


def targets(params: Params, batch: Batch) -> Float[Tensor, "X L D"]:
    """The prompt of each text's task."""
    target = params["target"]
    task = batch.task_index if target.shape[1] > 1 else torch.zeros_like(batch.task_index)
    return target[batch.copy_index.to(target.device), task.to(target.device)]


def by_copy(
    rows: Float[Tensor, "X d"], matrices: Float[Tensor, "C d e"], copy: Int[Tensor, " X"]
) -> Float[Tensor, "X e"]:
    """Each row times its copy's matrix: one batched product, without a matrix for every row."""
    place = one_hot(copy, len(matrices)).cumsum(0).gather(1, copy[:, None])[:, 0] - 1
    padded = rows.new_zeros(len(matrices), int(place.max()) + 1, rows.shape[1])
    return (padded.index_put((copy, place), rows) @ matrices)[copy, place]


def network_start(width: int, rank: int, generator: torch.Generator) -> Params:
    """An untrained attention network without a copies axis, as torch.nn.Linear and LayerNorm start theirs."""

    def uniform(fan_in: int, fan_out: int) -> Tensor:
        return (torch.rand(fan_in, fan_out, generator=generator) * 2 - 1) / fan_in**0.5

    return {
        "down": uniform(width, rank),
        "up": uniform(rank, width),
        "gain": torch.ones(width),
        "shift": torch.zeros(width),
    }

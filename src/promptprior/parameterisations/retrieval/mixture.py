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
from promptprior.backbone.text_queries import Query, pooled
from promptprior.errors import SpecError
from promptprior.notation import Float, Int, Params, Tensor
from promptprior.parameterisations.retrieval.bank_diagnostics import entropy_bits, four_digits
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
        attention, count = self.attention(params, batch), sources.shape[1]
        mixed = _times_own_matrix(attention[:, :count], sources.flatten(2), batch.copy_index.to(attention.device))
        own = 1 + attention[:, count:].sum(1)  # P_task, and its share of the mixture where it attends to itself
        prompts = own[:, None, None] * _task_prompts(params, batch) + mixed.unflatten(1, (self.length, -1))
        return prompts, torch.arange(batch.texts)

    def attention(self, params: Params, batch: Batch) -> Float[Tensor, "X J"]:
        """How much each text takes of every source and, last, of its task's own prompt where that takes part."""
        keys = params["sources"].detach().amax(2)  # [C, S, D]
        copy = batch.copy_index.to(keys.device)

        q = pooled(self.backbone, batch, self.query).to(params["down"])  # [X, D]
        q = q - params["centre"][copy] if "centre" in params else q
        q = q if self.absolute else q / self.backbone.scale
        hidden = silu(_times_own_matrix(q, params["down"], copy))  # [X, r]
        h = layer_norm(_times_own_matrix(hidden, params["up"], copy), q.shape[-1:])
        h = h * params["gain"][copy] + params["shift"][copy]  # [X, D]

        scores = _times_own_matrix(h, keys.transpose(1, 2), copy)  # [X, S]
        if self.attends == "all":
            own = (h * _task_prompts(params, batch).amax(1)).sum(1, keepdim=True)
            scores = torch.cat([scores, own], dim=1)
        if self.absolute:
            divisor = keys.new_full((len(keys),), self.temperature)
        else:
            divisor = self.temperature * keys.shape[-1] ** 0.5 * keys.square().mean((1, 2)).sqrt()  # [C]
        return torch.softmax(scores / divisor[copy, None], dim=1)

    @torch.no_grad()
    def diagnose(self, params: Params, texts: Mapping[str, Sequence[Tokens]]) -> Mapping[str, object]:
        """What texts of each task attend to: the mean weight of every source, and how much texts differ.

        `entropy` is in bits, of the mean weights. `varies` is the largest standard deviation of a weight over texts: 0
        says that attention does not look at the text.
        """
        report = {}
        for task, tokens in texts.items():
            attention = self.attention(params, collate(tokens)).double().cpu()
            mean = attention.mean(0)
            names = [*self.names, "target"][: len(mean)]
            report[task] = {
                "weights": {name: four_digits(weight) for name, weight in zip(names, mean.tolist(), strict=True)},
                "entropy": four_digits(entropy_bits(mean)),
                "varies": four_digits(float(attention.std(0, correction=0).max())),
            }
        return {"attention": report}


def _task_prompts(params: Params, batch: Batch) -> Float[Tensor, "X L D"]:
    target = params["target"]
    task = batch.task_index if target.shape[1] > 1 else torch.zeros_like(batch.task_index)
    return target[batch.copy_index.to(target.device), task.to(target.device)]


def _times_own_matrix(
    rows: Float[Tensor, "X d"], matrices: Float[Tensor, "C d e"], copy: Int[Tensor, " X"]
) -> Float[Tensor, "X e"]:
    # Each row times its copy's matrix: rows are padded per copy, so that one product needs no matrix for every row.
    place = one_hot(copy, len(matrices)).cumsum(0).gather(1, copy[:, None])[:, 0] - 1  # of a row among its copy's
    padded = rows.new_zeros(len(matrices), int(place.max()) + 1, rows.shape[1])  # [C, most rows of a copy, d]
    return (padded.index_put((copy, place), rows) @ matrices)[copy, place]

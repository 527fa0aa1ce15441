"""CT-Prompt: a prompt that starts from the demonstrations of in-context learning, and is trained.

Lu et al. 2025, "Context Tuning for In-Context Optimization" (arXiv 2507.04221). While an example is fitted its own
demonstration is hidden (leave-one-out), or the prompt would learn to copy; so is a random share of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.methods import AdaptationInit, Episode, Recipe, RunContext, fact, option
from promptprior.methods.target_only.in_context import InContext
from promptprior.notation import Bool, Float, Int, Params, Tensor
from promptprior.tasks.sampling.batch import Batch
from promptprior.tasks.sampling.draws import generator


@dataclass(frozen=True)
class Demonstrations:
    """params: "prompt" Float[C, L, D]. `spans[i]`: first token that shows example i, and the one after its last.

    It folds into a plain prompt, so no artifact has its name and it needs no entry point.
    """

    length: int
    width: int
    spans: tuple[tuple[int, int], ...]
    token_dropout: float
    name: str = "demonstrations"

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "P L D"], Int[Tensor, " X"]]:
        """In training each text has a prompt of its own, since it sees less of it than others."""
        if batch.step < 0:
            return params["prompt"], batch.copy_index
        return params["prompt"][batch.copy_index], torch.arange(batch.texts)

    def hidden(self, params: Params, batch: Batch) -> Bool[Tensor, "X L"] | None:
        """In training, the tokens that show the text itself, and those that this step drops for its copy."""
        if batch.step < 0:
            return None
        spans = torch.tensor([*self.spans, (0, 0)])[batch.example_index]  # [X, 2]; -1 (unknown) hides nothing
        token = torch.arange(self.length)
        own = (token >= spans[:, :1]) & (token < spans[:, 1:])  # [X, L]
        draws = [generator(seed, "token dropout", batch.step) for seed in batch.seeds]
        kept = torch.stack([torch.rand(self.length, generator=draw) for draw in draws]) >= self.token_dropout  # [C, L]
        return own | ~kept[batch.copy_index]

    def fold(self, params: Params) -> Params:
        return params


@dataclass(frozen=True)
class CtPrompt(Recipe):
    """In-context learning's prompt, trained for each target."""

    name: str = fact("ct_prompt")
    token_dropout: float = option(0.05, "share of prompt tokens that a training step hides", least=0)

    adapts_one_by_one: ClassVar[bool] = True  # prompts of episodes differ in length

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """The embeddings of one episode's demonstrations."""
        [episode] = episodes
        backbone, in_context = context.backbone, InContext()
        shown, ids = in_context.demonstrations(backbone, episode)
        ends = [len(in_context.tokens(backbone, episode.task, shown[: i + 1])) for i in range(len(shown))]
        span_of = {e.id: span for e, span in zip(shown, zip([0, *ends], ends, strict=False), strict=True)}
        spans = tuple(span_of.get(e.id, (0, 0)) for e in episode.shots.train)  # the order of Batch.example_index
        prompt = backbone.frozen.embed(torch.tensor(ids)).detach().to(backbone.frozen.prompt_dtype)  # [L, D]
        form = Demonstrations(len(ids), backbone.width, spans, self.token_dropout)
        return AdaptationInit(form, {"prompt": prompt[None]})


CT_PROMPT = CtPrompt()

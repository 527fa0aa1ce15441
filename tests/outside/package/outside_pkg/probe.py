"""A linear probe: softmax regression on the frozen state that would predict the answer. It has no prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cross_entropy

from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone, ranking_tokens
from promptprior.errors import SpecError
from promptprior.methods import AdaptationInit, Episode, Recipe, RunContext, fact, option
from promptprior.notation import Float, Tensor
from promptprior.tasks import Task
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class ProbeAnswers:
    """Scores of classes, each known by the tokens of its answer."""

    backbone: Backbone
    classes: Sequence[Sequence[int]]
    length: int = 0  # nothing stands in front of a text

    def losses(self, params: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, " R"]:
        """-log p(class of the row's target | text) over the target's length, in nats per token."""
        frozen = self.backbone.frozen
        no_prompt = torch.zeros(1, 0, self.backbone.width, dtype=frozen.prompt_dtype, device=frozen.device)
        with torch.no_grad():
            read = batch.reading(torch.zeros_like(batch.prompt_index))
            states = self.backbone.target_states(no_prompt, read)  # [V, D], V target tokens of all rows
        first = (batch.target_lengths.cumsum(0) - batch.target_lengths).to(states.device)  # [R]
        logits = states[first].to(params["weight"]) @ params["weight"] + params["bias"]  # [R, classes]
        place = {tuple(ids): i for i, ids in enumerate(self.classes)}
        rows = zip(batch.target_ids.tolist(), batch.target_lengths.tolist(), strict=True)
        labels = torch.tensor([place[tuple(ids[:n])] for ids, n in rows], device=logits.device)
        return cross_entropy(logits, labels, reduction="none") / batch.target_lengths.to(logits.device)

    def generate(self, params: Mapping[str, Tensor], batch: Batch, max_new_tokens: int) -> list[str]:
        """Raises SpecError: `Probe.serves` keeps free text away."""
        raise SpecError("a linear probe ranks classes and writes no text; use another method for free-text tasks")


@dataclass(frozen=True)
class LinearProbe:
    """params: "weight" Float[C, D, classes], "bias" Float[C, classes]."""

    classes: tuple[tuple[int, ...], ...]
    name: str = "linear_probe"
    holds: ClassVar[str] = "a linear probe of the last state"

    def answers(self, backbone: Backbone) -> ProbeAnswers:
        """Artifacts keep lists for tuples: both will do."""
        return ProbeAnswers(backbone, self.classes)


@dataclass(frozen=True)
class Probe(Recipe):
    """A probe for every target, from zero."""

    name: str = fact("outside_probe")
    rate: float = option(0.1, "absolute learning rate where prompts have 1 in embedding scales", above=0)

    adapts_one_by_one: ClassVar[bool] = True  # targets differ in their classes

    def serves(self, task: Task) -> str | None:
        """Tasks whose examples all have the same choices."""
        if not task.is_choice:
            return "a probe ranks fixed classes, and this task is answered in free text"
        if len({example.choices for example in task.split("train")}) > 1:
            return "a probe ranks fixed classes, and the choices of this task differ by example"
        return None

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """One episode's probe. Raises SpecError where the tokens of an answer depend on the text before it."""
        [episode] = episodes
        rows = ranking_tokens(context.backbone, episode.task, episode.shots.train)
        if len({row.targets for row in rows}) > 1:
            raise SpecError(f"task {episode.task.name!r}: an answer has other tokens after other texts; a probe cannot")
        frozen, classes = context.backbone.frozen, rows[0].targets
        weight = torch.zeros(1, context.backbone.width, len(classes), dtype=frozen.prompt_dtype, device=frozen.device)
        rates = tuple(self.rate * rate for rate in context.settings.target.learning_rates)
        return AdaptationInit(LinearProbe(classes), {"weight": weight, "bias": weight[:, 0]}, learning_rates=rates)


PROBE = Probe()

"""Context tuning: the demonstrations of in-context learning, trained, as a prompt or as what the model caches of them.

Lu et al. 2025, "Context Tuning for In-Context Optimization" (arXiv 2507.04221): CT-Prompt trains the
embeddings of the demonstrations, CT-KV their keys and values in every layer. Parameterisation demonstrations over
direct or prefix, rule descent, no sources. From the paper: the start, leave-one-out masking, token dropout. Ours: the
demonstrations are in_context's; the share of dropped positions and the rates, which were hardly searched
(docs/log.md). A decoder's cache answers as in_context before any step; an encoder-decoder's prefix is what its decoder
caches of the demonstrations, since the encoder has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.methods.learned import AdaptationInit
from promptprior.methods.options import fact, option
from promptprior.methods.run_context import Episode, RunContext
from promptprior.methods.shared.demonstrations import Demonstrations
from promptprior.methods.target_only.in_context import InContext
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.prefix import Prefix, prefix_form, prefix_start


@dataclass(frozen=True)
class ContextTuning(InContext):
    """In-context learning's demonstrations, and training from there."""

    name: str = fact("context_tuning")
    form: Literal["prompt", "prefix"] = fact("prefix")
    leave_one_out: bool = option(True, "hide a text's own demonstration while it is fitted")
    token_dropout: float = option(0.05, "share of positions that a training step hides", least=0, most=1)
    speed: float = option(0.01, "rate, as a multiple of --target.learning-rates", above=0)

    trains: ClassVar[bool] = True
    read_prompts = "none"  # but the shots

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """The demonstrations of one episode, and where each training example stands in them."""
        [episode] = episodes
        backbone, frozen = context.backbone, context.backbone.frozen
        shown, ids = self.demonstrations(backbone, episode)
        ends = [len(self.tokens(backbone, episode.task, shown[: i + 1])) for i in range(len(shown))]
        span_of = {e.id: span for e, span in zip(shown, zip([0, *ends[:-1]], ends, strict=True), strict=True)}
        train = episode.shots.train  # in the order of Batch.example_index
        spans = [span_of.get(e.id, (0, 0)) if self.leave_one_out else (0, 0) for e in train]
        start = frozen.embed(torch.tensor(ids)).detach().to(frozen.prompt_dtype)[None]  # [1, L, D]
        free: Direct | Prefix = Direct(len(ids), backbone.width)
        if self.form == "prefix":
            free = prefix_form(backbone, len(ids), context.settings.layers)
            start = prefix_start(free, backbone, start)  # [1, L, W]
        return AdaptationInit(
            Demonstrations(free, tuple(spans), self.token_dropout),
            {"prompt": start},
            lr_multipliers={"prompt": self.speed},
            variants=({"demonstrations": len(shown), "left_out": len(train) - len(shown)},),
        )

    def shown_shots(self, shots: int) -> int:
        """As many as in_context shows, in a prompt; those of a prefix are no tokens."""
        return super().shown_shots(shots) if self.form == "prompt" else 0


ARMS = (ContextTuning(), ContextTuning(name="context_tuning_prompt", form="prompt", speed=1.0))

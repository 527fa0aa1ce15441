"""The form `demonstrations`: a prompt or prefix that starts from demonstrations, and hides some of them in training.

Lu et al. 2025, "Context Tuning for In-Context Optimization" (arXiv 2507.04221). A text that is itself one of the
demonstrations does not see that one while it is fitted (leave-one-out), or training would teach to copy; and every step
hides a random share of all positions (token dropout). Evaluation hides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptprior.backbone.key_values import KeyValues, Prompts
from promptprior.notation import Bool, Int, Params, Tensor
from promptprior.parameterisations.direct import Direct
from promptprior.parameterisations.prefix import Prefix
from promptprior.tasks.sampling.batch import Batch
from promptprior.tasks.sampling.draws import generator


@dataclass(frozen=True)
class Demonstrations:
    """params: those of `free`. `spans[i]` is where the free prompt shows training example i: from its first position
    to the one after its last; (0, 0) where it does not.

    It folds into the free prompt, so no artifact has its name.
    """

    free: Direct | Prefix
    spans: Sequence[tuple[int, int]]
    token_dropout: float = 0.0
    name: str = "demonstrations"

    @property
    def length(self) -> int:
        """L."""
        return self.free.length

    @property
    def plain(self) -> Direct | Prefix:
        """The form of what `fold` returns."""
        return self.free.plain if isinstance(self.free, Prefix) else self.free

    def fold(self, params: Params) -> Params:
        """The free prompts."""
        return self.free.fold(params) if isinstance(self.free, Prefix) else params

    def prompts(self, params: Params, batch: Batch) -> tuple[Prompts, Int[Tensor, " X"]]:
        """The free prompt of each copy; in training each text has one of its own, which hides other parts of it. The
        keys and values of prefixes are shared all the same."""
        prompts, index = self.free.prompts(params, batch)
        if batch.step < 0:
            return prompts, index
        if isinstance(prompts, KeyValues):
            return replace(prompts, prefix_of=index), torch.arange(batch.texts)
        return prompts[index.to(prompts.device)], torch.arange(batch.texts)

    def hidden(self, params: Params, batch: Batch) -> Bool[Tensor, "X L"] | None:
        """In training, the positions that show the text itself, and those that this step drops for its copy: drawn from
        (seed, step), so that a resumed run hides the same."""
        if batch.step < 0:
            return None
        spans = torch.tensor([*self.spans, (0, 0)])[batch.example_index]  # [X, 2]; -1 (unknown) is the last: nothing
        position = torch.arange(self.length)
        hidden = (position >= spans[:, :1]) & (position < spans[:, 1:])  # [X, L]
        if self.token_dropout:
            draws = [generator(seed, "token dropout", batch.step) for seed in batch.seeds]
            drawn = torch.stack([torch.rand(self.length, generator=draw) for draw in draws])  # [C, L]
            hidden = hidden | (drawn < self.token_dropout)[batch.copy_index]
        return hidden if bool(hidden.any()) else None

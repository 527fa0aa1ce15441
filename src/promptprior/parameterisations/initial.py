"""Starting values: prompts on the scale of the backbone's own embeddings, small networks as torch.nn starts them."""

from collections.abc import Sequence
from typing import Literal

import torch

from promptprior.backbone import Backbone
from promptprior.errors import SpecError
from promptprior.notation import Float, Tensor

Start = Literal["vocabulary", "text", "labels", "noise"]
FREQUENT = 5000  # Lester et al. 2021 draw from the 5,000 most common tokens; byte-pair ids are ordered by frequency


def start_prompt(
    backbone: Backbone, kind: Start, length: int, generator: torch.Generator, text: str = "", labels: Sequence[str] = ()
) -> Float[Tensor, "L D"]:
    """A starting prompt, detached, in the prompts' dtype.

    vocabulary: embeddings of frequent tokens. text: those of the words in `text`, repeated or cut to the length.
    labels: the mean embedding of each answer in `labels`, then frequent tokens (Lester et al. 2021). noise: Gaussian,
    with the embeddings' mean and standard deviation in every dimension. Raises SpecError for an empty text and for more
    tokens than the vocabulary has.
    """
    frozen = backbone.frozen
    table = frozen.vocabulary_embeddings  # [V, D]
    if kind == "text":
        ids = frozen.alone(text)
        if not ids:
            raise SpecError("start text (--start-text) is empty: give the words the prompt should start from")
        repeats = -(-length // len(ids))
        start = frozen.embed(torch.tensor((ids * repeats)[:length])).to(table.dtype)
    elif kind == "noise":
        noise = torch.randn(length, backbone.width, generator=generator, dtype=table.dtype).to(table.device)
        factor = backbone.scale / table.std()  # some families scale embeddings in their forward pass
        start = (table.mean(0) + noise * table.std(0)) * factor
    else:
        start = vocabulary_start(backbone, length, generator)
        for row, label in enumerate(labels[:length] if kind == "labels" else ()):
            ids = frozen.alone(" " + label)
            start[row] = frozen.embed(torch.tensor(ids)).to(start.dtype).mean(0)
    return start.detach()


def vocabulary_start(backbone: Backbone, length: int, generator: torch.Generator) -> Float[Tensor, "L D"]:
    """Embeddings of distinct tokens drawn from the most frequent part of the vocabulary (Lester et al. 2021). Raises
    SpecError for more tokens than there are."""
    table = backbone.frozen.vocabulary_embeddings
    special = set(backbone.frozen.tokenizer.all_special_ids)
    pool = torch.tensor([i for i in range(min(len(table), FREQUENT + len(special))) if i not in special])
    if length > len(pool):
        raise SpecError(f"prompt length {length} (--length): at most {len(pool)} frequent tokens to start from")
    return backbone.frozen.embed(pool[torch.randperm(len(pool), generator=generator)[:length]]).to(table.dtype)


def linear_init(*shape: int, fan_in: int, generator: torch.Generator) -> Tensor:
    """Of this shape, uniform within 1 / sqrt(fan_in), as torch.nn.Linear draws its weights and biases."""
    return (torch.rand(*shape, generator=generator) * 2 - 1) / fan_in**0.5

"""Starting prompts, always on the scale of the backbone's own embeddings."""

from collections.abc import Sequence
from typing import Literal

import torch

from promptprior.backbone import Backbone
from promptprior.errors import SpecError
from promptprior.notation import Float, Tensor

Start = Literal["vocabulary", "text", "labels", "noise"]
FREQUENT = 5000  # Lester et al. 2021 draw from the 5,000 most common tokens; byte-pair ids are ordered by frequency


def vocabulary_start(backbone: Backbone, length: int, generator: torch.Generator) -> Float[Tensor, "L D"]:
    """Embeddings of distinct tokens drawn from the most frequent part of the vocabulary (Lester et al. 2021)."""
    table = backbone.frozen.vocabulary_embeddings
    special = set(backbone.frozen.tokenizer.all_special_ids)
    pool = torch.tensor([i for i in range(min(len(table), FREQUENT + len(special))) if i not in special])
    if length > len(pool):
        raise SpecError(f"prompt length {length} (--length): at most {len(pool)} frequent tokens to start from")
    return backbone.frozen.embed(pool[torch.randperm(len(pool), generator=generator)[:length]]).to(table.dtype)


def text_start(backbone: Backbone, length: int, text: str) -> Float[Tensor, "L D"]:
    """Embeddings of a text's tokens, repeated or cut to the prompt's length."""
    ids = backbone.frozen.alone(text)
    if not ids:
        raise SpecError("start text (--start-text) is empty: give the words the prompt should start from")
    repeats = -(-length // len(ids))
    table = backbone.frozen.vocabulary_embeddings
    return backbone.frozen.embed(torch.tensor((ids * repeats)[:length])).to(table.dtype)


def label_start(
    backbone: Backbone, length: int, labels: Sequence[str], generator: torch.Generator
) -> Float[Tensor, "L D"]:
    """One mean embedding per answer, then frequent tokens (Lester et al. 2021, class labels)."""
    start = vocabulary_start(backbone, length, generator)
    for place, label in enumerate(labels[:length]):
        ids = backbone.frozen.alone(" " + label)
        start[place] = backbone.frozen.embed(torch.tensor(ids)).to(start.dtype).mean(0)
    return start


def noise_start(backbone: Backbone, length: int, generator: torch.Generator) -> Float[Tensor, "L D"]:
    """Gaussian noise with the embeddings' own mean and standard deviation in every dimension."""
    table = backbone.frozen.vocabulary_embeddings
    noise = torch.randn(length, backbone.width, generator=generator, dtype=table.dtype).to(table.device)
    scaled = backbone.scale / table.std()  # some families scale embeddings in their forward pass
    return (table.mean(0) + noise * table.std(0)) * scaled


def start_prompt(
    backbone: Backbone, kind: Start, length: int, generator: torch.Generator, text: str = "", labels: Sequence[str] = ()
) -> Float[Tensor, "L D"]:
    """A starting prompt of a kind, detached, in the prompts' dtype."""
    if kind == "text":
        made = text_start(backbone, length, text)
    elif kind == "labels":
        made = label_start(backbone, length, labels, generator)
    elif kind == "noise":
        made = noise_start(backbone, length, generator)
    else:
        made = vocabulary_start(backbone, length, generator)
    return made.detach()

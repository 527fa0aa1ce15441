"""States of texts, pooled: what heads read of the frozen model."""

from typing import Literal, NamedTuple

Pooling = Literal["mean", "last"]


class Site(NamedTuple):
    """A place where states are read: after block `layer` (0: the embeddings, the last: before any final norm), the mean
    over the text's tokens or its last token."""

    layer: int
    pooling: Pooling

"""The letters and words that every signature uses.

Axes (capital letters in shapes):

    P  distinct prompts           L  prompt length (soft tokens)      D  width of the backbone
    X  texts in a batch           T  tokens of a text                 R  rows (one target to score)
    U  tokens of a target         C  copies (leading axis of params)  M  particles
    N  tokens of a bank           K  shots, or inner steps: the place says which

A *text* is a tokenised input with the prompt it reads; a *row* is one target scored after a text.
In training every text has one row; when C answer choices are ranked, one text has C rows.

Scale: a backbone's embedding entries have a standard deviation, its `scale`. Learning rates, noise, bandwidths and
prior widths are written in units of that scale unless a name ends in `_absolute`.
"""

from collections.abc import Callable, Mapping

from jaxtyping import Bool, Float, Int
from torch import Tensor

Params = dict[str, Tensor]
"""Named tensors of a parameterisation; every tensor has a leading copies axis C."""

Memory = dict[str, Tensor]
"""What a rule or an optimiser remembers between steps, flat, so that a checkpoint is one file."""

__all__ = ["Bool", "Callable", "Float", "Int", "Mapping", "Memory", "Params", "Tensor"]

"""The tests' own check of shapes: it refuses what contradicts a signature, in each test anew."""

import pytest
import torch
from jaxtyping import TypeCheckError

from promptprior.rules.stein_kernels import squared_distances


@pytest.mark.parametrize("again", range(2))
def test_a_shape_that_contradicts_a_signature_is_refused(again: int) -> None:
    with pytest.raises(TypeCheckError):
        squared_distances(torch.zeros(3, 2))
    squared_distances(torch.zeros(1, 3, 2))

"""AXIS 3: how states become answers. `HEADS` is all heads by the name that artifacts keep."""

from collections.abc import Mapping
from typing import Any

from promptprior.heads.calibrated import Calibrated
from promptprior.heads.constant import Constant
from promptprior.heads.head import Head, Readout
from promptprior.heads.linear import Linear
from promptprior.heads.mixed import MixedHead
from promptprior.heads.nearest import Nearest
from promptprior.heads.verbalizer import Verbalizer

HEADS: Mapping[str, type[Any]] = {
    "verbalizer": Verbalizer,
    "calibrated": Calibrated,
    "linear": Linear,
    "nearest": Nearest,
    "constant": Constant,
    "mixture": MixedHead,
}

__all__ = ["HEADS", "Head", "Readout"]

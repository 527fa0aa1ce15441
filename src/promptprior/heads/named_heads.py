"""All heads: by the name that artifacts keep, and by the name that a method is given (`--options.head`)."""

from collections.abc import Mapping
from typing import Any

from promptprior.config.choices import HeadName
from promptprior.heads.calibrated import Calibrated
from promptprior.heads.constant import Constant
from promptprior.heads.head import Head
from promptprior.heads.linear import Linear
from promptprior.heads.mixed import MixedHead
from promptprior.heads.nearest import Nearest
from promptprior.heads.verbalizer import Verbalizer

KINDS: tuple[type[Any], ...] = (Verbalizer, Calibrated, Linear, Nearest, Constant, MixedHead)
HEADS: Mapping[str, type[Any]] = {head.name: head for head in KINDS}
NAMED_HEADS: Mapping[HeadName, Head] = {
    "calibrated": Calibrated(by="shots"),
    "batch": Calibrated(by="texts"),
    "contextual": Calibrated(by="content_free"),
    "linear": Linear(),
    "nearest": Nearest(),
    "constant": Constant(),
    "mixture": MixedHead(),
}

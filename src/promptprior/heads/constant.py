"""The best constant answer: how often each label stands among the shots. A reference, and a lower bound."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from promptprior.heads.head import Head, Readout
from promptprior.notation import Float, Int, Params, Tensor


@dataclass(frozen=True)
class Constant(Head):
    """The label frequencies of the shots for every text, with one more shot of each label (Laplace). The first of
    equally frequent labels is the answer."""

    name: str = "constant"
    reads_nll: ClassVar[bool] = False

    def fit(self, shots: Readout, labels: Int[Tensor, " X"], extra: Readout | None) -> Params:  # noqa: ARG002
        """`counts` [K]: the shots of each label, and one."""
        return {"counts": 1 + torch.bincount(labels.cpu(), minlength=shots.nll.shape[1]).double()}

    def choice_nll(self, params: Params, readout: Readout) -> Float[Tensor, "X K"]:
        """Minus the log frequencies, for every text."""
        counts = params["counts"].double().to(readout.nll.device)
        return -(counts / counts.sum()).log().expand(len(readout.nll), -1)

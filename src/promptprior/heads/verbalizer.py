"""The head that there always was: label texts through the language model's own head."""

from dataclasses import dataclass

import torch

from promptprior.heads.head import Head, Readout
from promptprior.notation import Float, Params, Tensor


@dataclass(frozen=True)
class Verbalizer(Head):
    """Probabilities of label texts as the model has them. It fits nothing and reads no states."""

    name: str = "verbalizer"

    def choice_nll(self, params: Params, readout: Readout) -> Float[Tensor, "X K"]:  # noqa: ARG002
        """The summed NLL of the choices, normalised over them."""
        return -torch.log_softmax(-readout.nll.double(), dim=1)

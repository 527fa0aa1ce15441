"""Label texts and states together: the mean of two heads' probabilities, weighted by how well each does held out."""

from dataclasses import dataclass

import torch

from promptprior.backbone import Site
from promptprior.heads.calibrated import Calibrated
from promptprior.heads.head import Head, Readout
from promptprior.heads.linear import Linear
from promptprior.notation import Float, Int, Params, Tensor

WEIGHTS = torch.linspace(0, 1, 21, dtype=torch.float64)  # of the linear head
LONE_WEIGHT = 0.5  # where a label has one shot, so that none can be left out


@dataclass(frozen=True)
class MixedHead(Head):
    """p = weight * p of `linear` + (1 - weight) * p of `calibrated` (by shots). The weight is that of the best
    log-likelihood of the shots, each answered by heads that were fitted without it."""

    calibrated: Calibrated = Calibrated()
    linear: Linear = Linear()
    name: str = "mixture"

    def sites(self, layers: int) -> tuple[Site, ...]:
        """Those of the linear head."""
        return self.linear.sites(layers)

    def used(self, params: Params) -> tuple[int, ...]:
        """Those that the linear head uses."""
        return self.linear.used({"site": params["linear.site"]})

    def fit(self, shots: Readout, labels: Int[Tensor, " n"], extra: Readout | None) -> Params:  # noqa: ARG002
        """`weight` [1], and the params of both heads under "calibrated." and "linear."."""
        labels = labels.cpu()
        logs = torch.log_softmax(-shots.nll.double().cpu(), dim=1)
        of_texts, texts_nll = self.calibrated.fit_held_out(logs, labels)
        of_states, states_nll = self.linear.fit_held_out(shots, labels)
        weight = texts_nll.new_full((1,), LONE_WEIGHT)
        if states_nll is not None:
            right = torch.arange(len(labels)), labels
            mixed = WEIGHTS[:, None] * (-states_nll[right]).exp() + (1 - WEIGHTS[:, None]) * (-texts_nll[right]).exp()
            weight = WEIGHTS[mixed.log().mean(1).argmax()][None]  # mixed: [weights, n]
        named = {f"calibrated.{key}": value for key, value in of_texts.items()}
        return named | {f"linear.{key}": value for key, value in of_states.items()} | {"weight": weight}

    def choice_nll(self, params: Params, readout: Readout) -> Float[Tensor, "X K"]:
        """Minus the log of the mixed probabilities."""
        each = []
        for head in (self.linear, self.calibrated):
            own = {key.partition(".")[2]: value for key, value in params.items() if key.startswith(f"{head.name}.")}
            each.append(-head.choice_nll(own, readout))
        weight = params["weight"].double().to(each[0].device)
        return -torch.logaddexp(weight.log() + each[0], (1 - weight).log() + each[1])

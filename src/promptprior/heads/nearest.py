"""The labels of the nearest shots (k nearest neighbours), by the cosine of states less the shots' mean."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from promptprior.backbone import Pooling, Site
from promptprior.heads.head import Head, Readout
from promptprior.heads.linear import has_two_of_each, middle_site, spread_sites
from promptprior.notation import Float, Int, Params, Tensor


@dataclass(frozen=True)
class Nearest(Head):
    """Each of the k nearest shots votes for its label with weight (1 + cosine) / 2, and `pull` votes are spread evenly
    over the labels. Site and k are those of the best leave-one-out log-likelihood; with a single shot of some label,
    the middle site and k = 1."""

    neighbours: tuple[int, ...] = (1, 3, 5, 9, 15)
    layers: tuple[int, ...] = ()
    poolings: tuple[Pooling, ...] = ("mean", "last")
    pull: float = 1.0
    name: str = "nearest"
    reads_nll: ClassVar[bool] = False

    def sites(self, layers: int) -> tuple[Site, ...]:
        """Every pooling of the layers it names, or of a spread of the model's."""
        return spread_sites(layers, self.layers, self.poolings)

    def fit(self, shots: Readout, labels: Int[Tensor, " n"], extra: Readout | None) -> Params:  # noqa: ARG002
        """`site` [1], `k` [1], `mean` [D], the shots' `directions` [n, D] of length 1, and their `labels` [n, K]."""
        assert shots.states is not None
        states, labels = shots.states.detach().double().cpu(), labels.cpu()  # [n, S, D]
        mean = states.mean(0)  # [S, D]
        directions = torch.nn.functional.normalize(states - mean, dim=-1)
        answers = torch.nn.functional.one_hot(labels, shots.nll.shape[1]).double()  # [n, K]

        best, site, k = -torch.inf, middle_site(states.shape[1], len(self.poolings)), 1
        if has_two_of_each(labels):
            for s in range(states.shape[1]):
                cosine = (directions[:, s] @ directions[:, s].t()).fill_diagonal_(-torch.inf)  # [n, n]
                for count in (count for count in self.neighbours if count < len(states)):
                    nll = vote_nll(cosine, answers, count, self.pull)
                    likelihood = -float(nll.gather(1, labels[:, None]).mean())
                    if likelihood > best:
                        best, site, k = likelihood, s, count
        one = mean.new_ones(1)
        return {
            "site": one * site,
            "k": one * k,
            "mean": mean[site],
            "directions": directions[:, site].contiguous(),
            "labels": answers,
        }

    def choice_nll(self, params: Params, readout: Readout) -> Float[Tensor, "X K"]:
        """Minus the log of the votes' shares."""
        assert readout.states is not None
        states = readout.states[:, 0].double()  # [X, D]
        mean, directions, answers = (params[key].double().to(states.device) for key in ("mean", "directions", "labels"))
        cosine = torch.nn.functional.normalize(states - mean, dim=-1) @ directions.t()  # [X, n]
        return vote_nll(cosine, answers, int(params["k"]), self.pull)


def vote_nll(cosine: Float[Tensor, "X n"], answers: Float[Tensor, "n K"], k: int, pull: float) -> Float[Tensor, "X K"]:
    """Minus the log shares of the votes of the k nearest."""
    near, index = cosine.topk(k, dim=1)  # [X, k]
    weights = (1 + near) / 2
    votes = (weights[..., None] * answers[index]).sum(1)  # [X, K]
    return -((votes + pull / answers.shape[1]) / (weights.sum(1, keepdim=True) + pull)).log()

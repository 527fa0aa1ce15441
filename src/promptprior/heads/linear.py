"""A linear classifier of the states behind a prompt: ridge regression in closed form, chosen by leaving one out.

    W = Z' (Z Z' + strength I)^-1 (Y - mean Y)        n x n, the dual: few shots, wide states

Z are the shots' states, centred, Y is +1 for the label and -1 elsewhere. What the shots left out would have been
answered follows from the same decomposition (the hat matrix H has it: residual / (1 - H_ii)), so every setting is tried
without a second fit. Differentiable in the states (`ridge_solution`): R2D2 (Bertinetto et al. 2019, arXiv 1805.08136)
meta-learns through the same solution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from promptprior.backbone import Pooling, Site
from promptprior.heads.head import Head, Readout
from promptprior.notation import Float, Int, Params, Tensor

SPREAD = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)  # of the depth: the layers that are read by default
SCALES = torch.logspace(-1, 1.5, 26, dtype=torch.float64)  # of scores on their way to log-probabilities
LONE_STRENGTH, LONE_SCALE = 0.1, 3.0  # where a label has one shot, so that none can be left out


@dataclass(frozen=True)
class Linear(Head):
    """Ridge regression on standardised states, and a softmax of its scores.

    Candidates are the states of each site alone and those of all sites side by side, each with every strength (in units
    of the mean squared length of the standardised states) and every scale of the scores: leave-one-out log-likelihood
    of the shots chooses. With a single shot of some label, which leaves nothing to leave out, the middle site and fixed
    values are taken. `layers`: as Site counts them; by default nine over the whole depth.
    """

    layers: tuple[int, ...] = ()
    poolings: tuple[Pooling, ...] = ("mean", "last")
    strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0)
    name: str = "linear"
    reads_nll: ClassVar[bool] = False

    def sites(self, layers: int) -> tuple[Site, ...]:
        """Every pooling of the layers it names, or of a spread of the model's."""
        return spread_sites(layers, self.layers, self.poolings)

    def fit(self, shots: Readout, labels: Int[Tensor, " X"], extra: Readout | None) -> Params:  # noqa: ARG002
        """`site` [m], the indices of the sites that are read, side by side; `weight` [K, m D] and `bias` [K] of the
        states as they are, whose result are log-probabilities up to a constant."""
        return self.fit_held_out(shots, labels)[0]

    def fit_held_out(self, shots: Readout, labels: Int[Tensor, " n"]) -> tuple[Params, Float[Tensor, "n K"] | None]:
        """Params fitted to all shots, and the NLL of each shot's choices under those fitted without it (its states take
        part in the standardisation). None in place of the latter where a label has one shot."""
        assert shots.states is not None
        states, labels = shots.states.detach().double().cpu(), labels.cpu()  # [n, S, D]
        centre = states.mean(0)  # [S, D]
        spread = states.std(0, correction=0)
        spread = torch.where(spread > 1e-9 * states.abs().amax(0), spread, 1.0)  # a constant entry tells nothing
        every = (states - centre) / spread
        targets = 2.0 * torch.nn.functional.one_hot(labels, shots.nll.shape[1]).double() - 1  # [n, K]

        count = states.shape[1]
        best, held_out = (-torch.inf, (middle_site(count, len(self.poolings)),), LONE_STRENGTH, LONE_SCALE), None
        if has_two_of_each(labels):
            for sites in [(s,) for s in range(count)] + ([tuple(range(count))] if count > 1 else []):
                chosen = _side_by_side(every, sites)
                for strength, scores in zip(
                    self.strengths, leave_one_out_scores(chosen, targets, self.strengths), strict=True
                ):
                    logs = torch.log_softmax(SCALES[:, None, None] * scores, dim=-1)  # [scales, n, K]
                    likelihood = logs[:, torch.arange(len(labels)), labels].mean(1)  # [scales]
                    top = int(likelihood.argmax())
                    if float(likelihood[top]) > best[0]:
                        best, held_out = (float(likelihood[top]), sites, strength, float(SCALES[top])), -logs[top]
        _, sites, strength, scale = best

        weight, bias = ridge_solution(_side_by_side(every, sites), targets, strength)  # [m D, K], [K]
        unit = spread[list(sites)].flatten() * (len(sites) * states.shape[2]) ** 0.5  # of `_side_by_side`, undone
        weight = scale * weight / unit[:, None]
        bias = scale * bias - centre[list(sites)].flatten() @ weight
        params = {"site": torch.tensor(sites, dtype=torch.float64), "weight": weight.t().contiguous(), "bias": bias}
        return params, held_out

    def choice_nll(self, params: Params, readout: Readout) -> Float[Tensor, "X K"]:
        """Minus the log of the softmax of the scores."""
        assert readout.states is not None
        states = readout.states.flatten(1).double()  # [X, m D]
        weight, bias = (params[key].double().to(states.device) for key in ("weight", "bias"))
        return -torch.log_softmax(states @ weight.t() + bias, dim=1)


def ridge_solution(
    states: Float[Tensor, "*b n D"], targets: Float[Tensor, "*b n K"], strength: float | Float[Tensor, "*b 1 1"]
) -> tuple[Float[Tensor, "*b D K"], Float[Tensor, "*b K"]]:
    """The weight and bias that minimise |states @ weight + bias - targets|^2 + strength |weight|^2, by the dual.
    Differentiable in all three; `strength` above 0, the bias is not pulled."""
    mean, target_mean = states.mean(-2, keepdim=True), targets.mean(-2, keepdim=True)
    centred = states - mean
    gram = centred @ centred.transpose(-1, -2)  # [*b, n, n]
    ridge = gram + strength * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weight = centred.transpose(-1, -2) @ torch.linalg.solve(ridge, targets - target_mean)
    return weight, (target_mean - mean @ weight).squeeze(-2)


def leave_one_out_scores(
    states: Float[Tensor, "n D"], targets: Float[Tensor, "n K"], strengths: Sequence[float]
) -> Float[Tensor, "strengths n K"]:
    """What `ridge_solution` of all shots but one says of that one, for each, without fitting again."""
    centred, mean = states - states.mean(0), targets.mean(0)
    if len(states) <= states.shape[1]:
        values, vectors = torch.linalg.eigh(centred @ centred.t())  # [n], [n, n]
    else:
        vectors, lengths, _ = torch.linalg.svd(centred, full_matrices=False)  # [n, D], [D]
        values = lengths.square()
    values, along = values.clamp(min=0), vectors.t() @ (targets - mean)
    out = []
    for strength in strengths:
        shrink = values / (values + strength)
        fitted = mean + (vectors * shrink) @ along  # [n, K]
        leverage = 1 / len(states) + vectors.square() @ shrink  # [n]: the diagonal of the hat matrix
        out.append(targets - (targets - fitted) / (1 - leverage)[:, None])
    return torch.stack(out)


def _side_by_side(states: Float[Tensor, "n S D"], sites: Sequence[int]) -> Float[Tensor, "n mD"]:
    """The states of these sites as one, of mean squared length 1 where their entries have spread 1."""
    return states[:, list(sites)].flatten(1) / (len(sites) * states.shape[2]) ** 0.5


def spread_sites(layers: int, named: Sequence[int], poolings: Sequence[Pooling]) -> tuple[Site, ...]:
    """Every pooling of the layers that are named, or else of at most nine from the first to the last tenth."""
    chosen = sorted({*named} or {max(1, round(share * layers)) for share in SPREAD})
    return tuple(Site(layer, pooling) for layer in chosen for pooling in poolings)


def middle_site(sites: int, poolings: int) -> int:
    """The first pooling of the middle layer of `spread_sites`."""
    return sites // poolings // 2 * poolings


def has_two_of_each(labels: Int[Tensor, " n"]) -> bool:
    """Whether every label that occurs has at least two shots, so that one can be left out."""
    counts = torch.bincount(labels)
    return bool((counts[counts > 0] >= 2).all())

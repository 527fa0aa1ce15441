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
BOOTSTRAPS, LEAST_SHARE = 1000, 0.02


@dataclass(frozen=True)
class Linear(Head):
    """Ridge regression on the standardised states of each site, a softmax of its scores, and the weighted mean of the
    sites' probabilities.

    Strength (in units of the mean squared length of the standardised states) and scale of the scores are those of the
    best leave-one-out log-likelihood, site by site. That likelihood also weighs the sites (`site_shares`), and sites of
    next to no weight are not read when answering. With a single shot of some label, which leaves nothing to leave out,
    the middle site alone and fixed values are taken. `layers`: as Site counts them; by default nine over the whole
    depth.
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
        """`site` [m], the indices of the sites that are read, and their `share` [m]; `weight` [m, K, D] and `bias`
        [m, K] of the states as they are, whose results are log-probabilities up to a constant."""
        return self.fit_held_out(shots, labels)[0]

    def fit_held_out(self, shots: Readout, labels: Int[Tensor, " n"]) -> tuple[Params, Float[Tensor, "n K"] | None]:
        """Params fitted to all shots, and the NLL of each shot's choices under those fitted without it (its states take
        part in the standardisation, its label in the choice of settings). None in place of the latter where a label has
        one shot."""
        assert shots.states is not None
        states, labels = shots.states.detach().double().cpu(), labels.cpu()  # [n, S, D]
        centre, spread = states.mean(0), states.std(0, correction=0)  # [S, D]
        spread = torch.where(spread > 1e-9 * states.abs().amax(0), spread, 1.0)  # a constant entry tells nothing
        unit = spread * states.shape[2] ** 0.5
        standard = (states - centre) / unit  # of mean squared length 1
        targets = 2.0 * torch.nn.functional.one_hot(labels, shots.nll.shape[1]).double() - 1  # [n, K]

        sites, share, held_out = [middle_site(states.shape[1], len(self.poolings))], states.new_ones(1), None
        settings = [(LONE_STRENGTH, LONE_SCALE)]
        if has_two_of_each(labels):
            settings, logs = [], []
            for s in range(states.shape[1]):
                scores = leave_one_out_scores(standard[:, s], targets, self.strengths)  # [strengths, n, K]
                tried = torch.log_softmax(SCALES[:, None, None, None] * scores, dim=-1)  # [scales, strengths, n, K]
                likelihood = tried[..., torch.arange(len(labels)), labels].mean(-1)  # [scales, strengths]
                scale, strength = divmod(int(likelihood.argmax()), len(self.strengths))
                settings.append((self.strengths[strength], float(SCALES[scale])))
                logs.append(tried[scale, strength])
            table = torch.stack(logs)  # [S, n, K]
            every = site_shares(table[:, torch.arange(len(labels)), labels])
            sites = (every >= min(LEAST_SHARE, float(every.max()))).nonzero().flatten().tolist()
            share = every[sites] / every[sites].sum()
            settings = [settings[s] for s in sites]
            held_out = -torch.logsumexp(table[sites] + share.log()[:, None, None], dim=0)

        weights, biases = [], []
        for s, (alpha, factor) in zip(sites, settings, strict=True):
            weight, bias = ridge_solution(standard[:, s], targets, alpha)  # [D, K], [K]
            weight = factor * weight / unit[s][:, None]
            weights.append(weight.t())
            biases.append(factor * bias - centre[s] @ weight)
        params = {"site": share.new_tensor(sites), "share": share}
        return params | {"weight": torch.stack(weights), "bias": torch.stack(biases)}, held_out

    def choice_nll(self, params: Params, readout: Readout) -> Float[Tensor, "X K"]:
        """Minus the log of the mean of the sites' probabilities."""
        assert readout.states is not None
        states = readout.states.double()  # [X, m, D]
        share, weight, bias = (params[key].double().to(states.device) for key in ("share", "weight", "bias"))
        logs = torch.log_softmax(torch.einsum("xmd,mkd->xmk", states, weight) + bias, dim=-1)  # [X, m, K]
        return -torch.logsumexp(logs + share.log()[:, None], dim=1)


def site_shares(likelihood: Float[Tensor, "S n"]) -> Float[Tensor, " S"]:
    """Weights of S answers from the leave-one-out log-likelihood of each shot under each: pseudo-BMA+ (Yao, Vehtari,
    Simpson and Gelman 2018, arXiv 1704.02030), softmax over answers of the sum over shots, averaged over Bayesian
    bootstraps of the shots. With few shots the weights stay spread; picking the best one site is overconfident."""
    n = likelihood.shape[1]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(BOOTSTRAPS, n, generator=generator, dtype=torch.float64).log().neg()
    draws = drawn / drawn.sum(1, keepdim=True)  # [bootstraps, n]: uniform over the simplex
    return torch.softmax(n * draws @ likelihood.t(), dim=1).mean(0)


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

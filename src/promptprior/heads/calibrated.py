"""Label texts through the language model's head, less the model's bias for some of them.

    p(c | x) = softmax over c of (scale * log p(c | x) + offset_c)

Raw likelihoods of label texts differ by what the words are, whatever the text says. Offsets from three sources:

    shots          those that fit the labelled shots best, with a scale, pulled to 0 and 1
    texts          minus the log of the mean probability over the shots' texts, no labels seen: batch calibration
                   (Zhou et al. 2023, arXiv 2309.17249)
    content_free   the same over texts without content in the shots' template: contextual calibration (Zhao et al. 2021,
                   arXiv 2102.09690); as a difference of logs it is domain-conditional PMI (Holtzman et al. 2021,
                   arXiv 2104.08315)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from promptprior.heads.head import Head, Readout
from promptprior.notation import Bool, Float, Int, Params, Tensor

CONTENT_FREE = ("N/A", "", "[MASK]")
NEWTON_STEPS, CONVERGED = 100, 1e-10
LEAVE_ONE_OUT = 256  # shots up to which each is held out alone


@dataclass(frozen=True)
class Calibrated(Head):
    """The verbalizer with an offset for each label. `strengths` are pulls of the shots' offsets to 0, in nats over all
    shots; leave-one-out log-likelihood chooses (32 folds where there are more than 256 shots)."""

    by: Literal["shots", "texts", "content_free"] = "shots"
    strengths: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    name: str = "calibrated"

    def extra_texts(self, texts: Sequence[str]) -> list[str]:
        """What all texts begin and end with, the template, around nothing, around `N/A` and around `[MASK]`."""
        if self.by != "content_free":
            return []
        before, after = template_ends(texts)
        return [before + content + after for content in CONTENT_FREE if (before + content + after).strip()]

    def fit(self, shots: Readout, labels: Int[Tensor, " X"], extra: Readout | None) -> Params:
        """`offset` [K] in nats and `scale` [1] of the log-probabilities. Raises ValueError where content-free texts are
        asked for and not given."""
        logs = torch.log_softmax(-shots.nll.double().cpu(), dim=1)  # [X, K]
        if self.by == "shots":
            return self.fit_held_out(logs, labels.cpu())[0]
        if self.by == "content_free":
            if extra is None:
                raise ValueError("calibrated by content_free: the readout of its extra_texts is missing")
            logs = torch.log_softmax(-extra.nll.double().cpu(), dim=1)
        return {"offset": torch.tensor(len(logs)).log() - logs.logsumexp(0), "scale": logs.new_ones(1)}

    def fit_held_out(
        self, logs: Float[Tensor, "X K"], labels: Int[Tensor, " X"]
    ) -> tuple[Params, Float[Tensor, "X K"]]:
        """Params fitted to all shots, and the NLL of each shot's choices under those fitted without it."""
        out = held_out_folds(labels)  # [F, n]
        kept = torch.cat([~out, torch.ones_like(out[:1])])  # the last: all shots
        best, chosen = torch.inf, None
        for strength in self.strengths:
            offset, scale = fit_offsets(logs, labels, kept.double(), strength)  # [F + 1, K], [F + 1]
            nll = -torch.log_softmax(scale[:-1, None, None] * logs + offset[:-1, None], dim=-1)  # [F, n, K]
            held_out = nll[out.double().argmax(0), torch.arange(len(logs))]  # [n, K]
            loss = float(held_out.gather(1, labels[:, None]).mean())
            if loss < best:
                best, chosen = loss, ({"offset": offset[-1], "scale": scale[-1:]}, held_out)
        assert chosen is not None
        return chosen

    def choice_nll(self, params: Params, readout: Readout) -> Float[Tensor, "X K"]:
        """Minus the log of the calibrated probabilities."""
        logs = torch.log_softmax(-readout.nll.double(), dim=1)
        scale, offset = (params[key].double().to(logs.device) for key in ("scale", "offset"))
        return -torch.log_softmax(scale * logs + offset, dim=1)


def held_out_folds(labels: Int[Tensor, " n"]) -> Bool[Tensor, "F n"]:
    """True where a shot is held out of a fold: each once, and the shots of a label spread evenly over the folds. One
    fold for each shot, or 32 where there are more than LEAVE_ONE_OUT shots."""
    n = len(labels)
    count = n if n <= LEAVE_ONE_OUT else 32
    place = torch.empty(n, dtype=torch.long)
    place[labels.cpu().argsort(stable=True)] = torch.arange(n)  # neighbours of one label go to different folds
    return place % count == torch.arange(count)[:, None]


def fit_offsets(
    logs: Float[Tensor, "n K"], labels: Int[Tensor, " n"], weights: Float[Tensor, "F n"], strength: float
) -> tuple[Float[Tensor, "F K"], Float[Tensor, " F"]]:
    """For each fold the offsets and the scale that minimise

        sum over shots of weight * NLL of the label + strength / 2 * (sum of squared offsets + (scale - 1)^2)

    which is strictly convex: Newton's method, all folds at once, each halving its steps until the sum falls. Folds that
    leave out a shot or a few end near what all shots give, so that is found first and is where they start."""
    choices = logs.shape[1]
    right = torch.nn.functional.one_hot(labels, choices).to(logs)  # [n, K]
    pulled_to = torch.cat([logs.new_zeros(choices), logs.new_ones(1)])
    identity = torch.eye(choices + 1, dtype=logs.dtype)

    def objective(theta: Float[Tensor, "F K1"], weights: Float[Tensor, "F n"]) -> tuple[Tensor, Tensor]:
        """The sums [F], and the log-probabilities [F, n, K] that they are of."""
        table = torch.log_softmax(theta[:, -1, None, None] * logs + theta[:, None, :-1], dim=-1)
        fit = (weights * table.gather(2, labels.expand(len(theta), -1)[..., None])[..., 0]).sum(1)
        return strength / 2 * (theta - pulled_to).square().sum(1) - fit, table

    def minimised(theta: Float[Tensor, "F K1"], weights: Float[Tensor, "F n"]) -> Float[Tensor, "F K1"]:
        value, table = objective(theta, weights)
        for _ in range(NEWTON_STEPS):
            p = table.exp()  # [F, n, K]
            error, weighted = weights[..., None] * (p - right), weights[..., None] * p
            of_scale = (error * logs).sum((1, 2))[:, None]
            gradient = torch.cat([error.sum(1), of_scale], dim=1) + strength * (theta - pulled_to)
            spread = logs - (p * logs).sum(-1, keepdim=True)  # [F, n, K]
            around = weighted * spread
            cross = around.sum(1)  # [F, K]
            hessian = (strength * identity).repeat(len(weights), 1, 1)
            hessian[:, :-1, :-1] += torch.diag_embed(weighted.sum(1)) - weighted.transpose(1, 2) @ p
            hessian[:, :-1, -1] += cross
            hessian[:, -1, :-1] += cross
            hessian[:, -1, -1] += (around * spread).sum((1, 2))
            step = -torch.linalg.solve(hessian, gradient)
            if float((step.abs() / (1 + theta.abs())).max()) < CONVERGED:
                break
            size = torch.ones_like(value)
            for _ in range(30):
                new, table = objective(theta + size[:, None] * step, weights)
                if not (worse := new > value + 1e-12 * value.abs()).any():
                    break
                size = torch.where(worse, size / 2, size)
            theta, value = theta + size[:, None] * step, new
        return theta

    of_all = minimised(pulled_to[None], torch.ones_like(weights[:1]))
    theta = minimised(of_all.repeat(len(weights), 1), weights)  # [F, K + 1]: offsets, scale
    return theta[:, :-1], theta[:, -1]


def template_ends(texts: Sequence[str]) -> tuple[str, str]:
    """What all texts begin with and end with, each cut where a word of the template is whole.

    >>> template_ends(["Review: fine film\\nIs it good?", "Review: a bore\\nIs it good?"])
    ('Review: ', '\\nIs it good?')
    """
    ends = []
    for whole in (list(texts), [text[::-1] for text in texts]):
        low, high = min(whole), max(whole)  # what these two share at the front, all do
        ends.append(low[: next((i for i, c in enumerate(low) if c != high[i]), len(low))])
    before, after = ends[0], ends[1][::-1]
    longest = min(map(len, texts)) - len(before)
    after = after[len(after) - longest :] if len(after) > longest else after  # the two never overlap
    if any(text != before for text in texts):  # the last word may be the texts' own, and only begin alike
        before = before[: max((i + 1 for i, c in enumerate(before) if c.isspace()), default=0)]
        first = next((i for i, c in enumerate(after) if c.isspace()), len(after))
        after = after[first:]
    return before, after

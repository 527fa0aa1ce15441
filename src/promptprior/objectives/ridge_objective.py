"""How well a closed-form head that was fitted to a unit's support answers its query, differentiated into the prompt.

    z = (states - mean of the support) / (spread of the support sqrt(D))      states behind the prompt, pooled at a site
    W, b = ridge regression of the support's classes on z                     targets +1 and -1, strength exp(s)
    loss = - log softmax(exp(a) (W z + b)) of the right class                 of each query text, in nats

Gradients pass through the solution (R2D2: Bertinetto et al. 2019, arXiv 1805.08136; with a hinge loss and a quadratic
program MetaOptNet: Lee et al. 2019, arXiv 1904.03758), into the prompt, `s` and `a`. The head that a target fits to its
shots, `heads.linear`, standardises states and solves in the same way.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from promptprior.backbone import Site
from promptprior.heads.linear import ridge_solution
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class RidgeObjective(PromptObjective):
    """The loss of each query row, 0 for the rows of the support, which have weight 0 (FewShotDraws).

    Params are those of the parameterisation, "log_strength" [C] and "log_scale" [C]. A class is what texts have for an
    answer, so that classes need no numbers.
    """

    site: Site

    def losses(self, params: Params, batch: Batch) -> Float[Tensor, " R"]:
        """In nats. Raises ValueError for a text with more than one target, and for a unit without support."""
        if batch.rows != batch.texts:
            raise ValueError(f"{batch.texts} texts with {batch.rows} targets: a closed-form head needs one answer each")
        states = self.text_states(params, batch, [self.site])[:, 0].double()  # [X, D]
        answers = torch.cat([batch.target_lengths[:, None], batch.target_ids], dim=1)  # padding is no part of it
        losses, start = [], 0
        for size in batch.unit_sizes:
            unit = slice(start, start + size)
            start += size
            copy, scored = int(batch.copy_index[unit.start]), (batch.weight[unit] != 0).to(states.device)  # [n]
            if bool(scored.all()):
                raise ValueError(f"a unit of {size} texts has no support: rows of weight 0")
            labels = answers[unit].unique(dim=0, return_inverse=True)[1].to(states.device)  # [n]
            support = states[unit][~scored]
            variance = support.var(0, correction=0)
            least = (1e-9 * support.abs().amax(0)).square()  # an entry that is constant tells nothing
            spread = torch.where(variance > least, variance, 1.0).sqrt()
            z = (states[unit] - support.mean(0)) / (spread * states.shape[1] ** 0.5)  # [n, D]
            targets = 2.0 * torch.nn.functional.one_hot(labels).double() - 1  # [n, K]
            strength, scale = (params[name][copy].double().exp() for name in ("log_strength", "log_scale"))
            weight, bias = ridge_solution(z[~scored], targets[~scored], strength)
            nll = torch.nn.functional.cross_entropy(scale * (z @ weight + bias), labels, reduction="none")
            losses.append(nll * scored)
        return torch.cat(losses)

    def split(self, params: Params, batch: Batch, share: float = 1.0) -> Iterable[Batch]:  # noqa: ARG002
        """Whole units, as many together as fit into a share of the memory budget, and one at least."""
        budget, length = share * self.backbone.max_tokens, self.parameterisation.length
        start, end, used = 0, 0, 0
        for size in batch.unit_sizes:
            cost = int(batch.text_lengths[end : end + size].sum()) + size + length
            if end > start and used + cost > budget:
                yield batch.take(torch.arange(start, end))
                start, used = end, 0
            end, used = end + size, used + cost
        yield batch.take(torch.arange(start, end))

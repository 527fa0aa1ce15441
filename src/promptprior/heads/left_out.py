"""Parts of the shots that are held out, one after another, to choose a head's settings."""

import torch

from promptprior.notation import Bool, Int, Tensor

LEAVE_ONE_OUT = 256  # shots up to which each is held out alone


def held_out_folds(labels: Int[Tensor, " n"], most: int | None = None) -> Bool[Tensor, "F n"]:
    """True where a shot is held out of a fold: each once, and the shots of a label spread evenly over the folds.

    `most` folds at most; by default one for each shot, or 32 where there are more than LEAVE_ONE_OUT shots.
    """
    n = len(labels)
    count = min(n, most if most is not None else n if n <= LEAVE_ONE_OUT else 32)
    place = torch.empty(n, dtype=torch.long)
    place[labels.cpu().argsort(stable=True)] = torch.arange(n)  # neighbours of one label go to different folds
    return place % count == torch.arange(count)[:, None]

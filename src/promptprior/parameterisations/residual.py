"""The parameterisation `residual`: a prompt, and what a small network makes of it, added (residual prompt tuning).

Razdaibiedina et al. 2023 (Findings of ACL, arXiv 2305.03937), as their code has it:

    prompt = P + LayerNorm(up ReLU(down P + b) + b'),   one network for all tokens, or one for each

After training the sum is a plain prompt: the network is folded into it and dropped.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import layer_norm, relu

from promptprior.notation import Float, Int, Params, Tensor
from promptprior.parameterisations.initial import linear_init
from promptprior.tasks.sampling.batch import Batch

NETWORK = ("down", "down_bias", "up", "up_bias")  # ratios: they know no scale, unlike gain and shift


@dataclass(frozen=True)
class Residual:
    """params: "prompt" Float[C, L, D]; the network "down" Float[C, M, D, r], "down_bias" Float[C, M, r], "up"
    Float[C, M, r, D], "up_bias", "gain" and "shift" Float[C, M, D], with M = 1 for all tokens or M = L.

    `unit` divides the prompt before the network: the backbone's embedding scale, or 1 as released.
    """

    length: int
    width: int
    unit: float = 1.0
    name: str = "residual"

    def prompts(self, params: Params, batch: Batch) -> tuple[Float[Tensor, "C L D"], Int[Tensor, " X"]]:
        """Each copy's prompt with its network's output added."""
        return self.fold(params)["prompt"], batch.copy_index

    def fold(self, params: Params) -> Params:
        """The same prompts as params of `Direct`: P + LayerNorm(up ReLU(down P + b) + b')."""
        prompt, networks = params["prompt"], params["down"].shape[1]
        x = (prompt / self.unit).unflatten(1, (networks, -1))  # [C, M, L / M, D]
        hidden = relu(x @ params["down"] + params["down_bias"][:, :, None])  # [C, M, L / M, r]
        out = layer_norm(hidden @ params["up"] + params["up_bias"][:, :, None], (self.width,))
        added = out * params["gain"][:, :, None] + params["shift"][:, :, None]
        return {"prompt": prompt + added.flatten(1, 2)}

    def init(self, bottleneck: int, networks: int, gain: float, generator: torch.Generator) -> Params:
        """An untrained network without a copies axis, as torch.nn.Linear starts; LayerNorm's gain as given."""
        width = self.width
        return {
            "down": linear_init(networks, width, bottleneck, fan_in=width, generator=generator),
            "down_bias": linear_init(networks, bottleneck, fan_in=width, generator=generator),
            "up": linear_init(networks, bottleneck, width, fan_in=bottleneck, generator=generator),
            "up_bias": linear_init(networks, width, fan_in=bottleneck, generator=generator),
            "gain": torch.full((networks, width), gain),
            "shift": torch.zeros(networks, width),
        }

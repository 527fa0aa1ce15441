"""The parameterisation `prefix`: free keys and values of every layer (Li & Liang 2021; P-Tuning v2, Liu et al. 2022).

Without their network that makes the prefix from a smaller matrix: P-Tuning v2, and PEFT by default, have none either. A
start is what the frozen model caches of some tokens, so that it answers as these tokens do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch.nn import Module

from promptprior.backbone import Backbone
from promptprior.backbone.forward.dispatch import disagreement
from promptprior.backbone.key_values import KeyValues, cached_key_values
from promptprior.errors import SpecError
from promptprior.notation import Float, Int, Params, Tensor
from promptprior.parameterisations.initial import vocabulary_start
from promptprior.tasks.sampling.batch import Batch

MEASURED = 64  # frequent tokens whose keys and values say what the scale of each layer is
_MEASURES: "WeakKeyDictionary[Module, Prefix]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Prefix:
    """params: "prompt" Float[C, L, W]. The texts of copy c read prefix c; row l has all that stands at position l.

    W = depth x 2 x heads x head_width, in the order that PEFT has: layer after layer its keys, then its values.
    `layers` names the layers that have a prefix, () for all. Keys (values) are params times their layer's unit, 1
    without: in training the units make an entry as large as those of embeddings, so that rates, noise and the widths of
    priors mean the same as for a prompt of tokens. Saved prefixes have none (`fold`).
    """

    length: int
    depth: int
    heads: int
    head_width: int
    layers: Sequence[int] = ()
    key_units: Sequence[float] = ()
    value_units: Sequence[float] = ()
    name: str = "prefix"

    @property
    def width(self) -> int:
        """W, the numbers of one position."""
        return self.depth * 2 * self.heads * self.head_width

    @property
    def plain(self) -> "Prefix":
        """The form of what `fold` returns."""
        return replace(self, key_units=(), value_units=())

    def prompts(self, params: Params, batch: Batch) -> tuple[KeyValues, Int[Tensor, " X"]]:
        """The prefix of every copy."""
        each = self.fold(params)["prompt"].unflatten(2, (self.depth, 2, self.heads, -1))  # [C, L, layers, 2, H, d]
        keys, values = each.permute(3, 0, 2, 4, 1, 5)
        return KeyValues(keys, values, tuple(self.layers)), batch.copy_index

    def fold(self, params: Params) -> Params:
        """The same prefixes as the model reads them: params of `plain`."""
        return {"prompt": params["prompt"] * self.unit(params["prompt"])}

    def unit(self, like: Tensor) -> Float[Tensor, " W"]:
        """What each number of a position is multiplied by, [W], in the dtype of any tensor `like` it."""
        pairs = [self.key_units or [1.0] * self.depth, self.value_units or [1.0] * self.depth]
        return like.new_tensor(pairs).t().flatten().repeat_interleave(self.heads * self.head_width)


def prefix_form(backbone: Backbone, length: int, layers: Sequence[int] = ()) -> Prefix:
    """A free prefix for this backbone. Its units are the standard deviations of the keys and of the values that each
    layer caches of frequent tokens, over that of embeddings.

    Raises SpecError for layers that the model does not have, for models whose cache has no plain keys and values, and
    where the engine's route does not read a prefix as the model itself does.
    """
    model = backbone.frozen.model
    if model not in _MEASURES:
        if complaint := disagreement(backbone.frozen, backbone.states, of_prefixes=True):
            raise SpecError(
                f"form prefix (--form): {backbone.card.name} ({backbone.card.architecture}): the engine's route "
                f"{complaint} with a prefix; use --form prompt, and please report the model"
            )
        many = min(MEASURED, len(backbone.frozen.vocabulary_embeddings) // 2)
        drawn = vocabulary_start(backbone, many, torch.Generator().manual_seed(0))
        cached = cached_key_values(backbone.frozen, drawn[None])
        _, depth, heads, _, head_width = cached.keys.shape
        key_units, value_units = (
            tuple(float(f"{float(layer.double().std()) / backbone.scale:.6g}") for layer in x[0])
            for x in (cached.keys, cached.values)
        )
        _MEASURES[model] = Prefix(0, depth, heads, head_width, (), key_units, value_units)
    whole = _MEASURES[model]
    if bad := [layer for layer in layers if not 0 <= layer < whole.depth]:
        raise SpecError(f"layers {bad} (--layers): {backbone.card.name} has layers 0 to {whole.depth - 1}")
    if len(set(layers)) != len(layers):
        raise SpecError(f"layers {list(layers)} (--layers): expected each at most once")
    chosen = sorted(layers) or range(whole.depth)
    return replace(
        whole,
        length=length,
        depth=len(chosen),
        layers=tuple(sorted(layers)),
        key_units=tuple(whole.key_units[layer] for layer in chosen),
        value_units=tuple(whole.value_units[layer] for layer in chosen),
    )


def prefix_start(form: Prefix, backbone: Backbone, prompts: Float[Tensor, "K L D"]) -> Float[Tensor, "K L W"]:
    """The params of a form at which each prefix answers as a prompt of tokens does: what the model caches of it. (In an
    encoder-decoder, what its decoder caches; the encoder reads no prefix.)"""
    prefixes, chosen = cached_key_values(backbone.frozen, prompts), list(form.layers) or slice(None)
    both = torch.stack([prefixes.keys[:, chosen], prefixes.values[:, chosen]], dim=2)  # [K, layers, 2, H, L, d]
    made = both.permute(0, 4, 1, 2, 3, 5).flatten(2)
    return made / form.unit(made)

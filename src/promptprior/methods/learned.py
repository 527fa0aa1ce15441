"""What a recipe hands on: what its sources taught (`fit`), and where its targets start (`init`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from promptprior.cost import Cost
from promptprior.heads.head import Head
from promptprior.notation import Params, Tensor
from promptprior.parameterisations.parameterisation import Parameterisation
from promptprior.parameterisations.registry import Form
from promptprior.rules.descent import Penalty
from promptprior.rules.rule import Rule
from promptprior.tasks.sampling.batch import Batch


@dataclass(frozen=True)
class FitResult:
    """What the sources taught: parameters, what reads them, and what is worth knowing about them."""

    parameterisation: Parameterisation
    params: Params
    diagnostics: Mapping[str, object] = field(default_factory=dict)
    cost: Cost = Cost()


@dataclass(frozen=True)
class AdaptationInit:
    """Where adaptation starts: one copy of the parameters per episode.

    `variants` are ways to adapt each episode, described as a header keeps them, of which dev picks one. With V of them,
    params, penalty and multipliers of elements have copies `e * V + v`, one for episode `e` in variant `v`. Of an
    episode's variants each of `ensemble_size` equal parts gives a prompt, picked on dev within its part; they answer by
    their mean probability.

    `lr_multipliers` multiply the learning rate of single parameters by name (0 freezes one), or of every element of
    one, as a tensor of its shape. `learning_rates` are rates to try in absolute units, for params that are no prompt;
    without them the settings' are tried, in units of the embedding scale. `wrap_rule` turns the descent that targets
    move by into another rule (token dropout, SAM, weight averaging). `trainable`: how many numbers an episode learns,
    where that is not the numbers that adaptation may move (what `init` fitted itself). `head`: the recipe's head with
    settings of this start, such as the sites that a prior was made for; by default as it is registered.
    """

    parameterisation: Form
    params: Params
    penalty: Penalty | None = None
    lr_multipliers: Mapping[str, float | Tensor] = field(default_factory=dict)
    variants: Sequence[Mapping[str, object]] = ({},)
    ensemble_size: int = 1
    learning_rates: Sequence[float] = ()
    wrap_rule: Callable[[Rule[Batch]], Rule[Batch]] | None = None
    trainable: int | None = None
    head: Head | None = None

"""The contract of a method, a recipe named after its paper: what it learns from sources, and where targets start.

A recipe chooses a parameterisation and a rule and hands runs to `context.train`, the one training loop. Adaptation is
the same for all (adapt.py) once they have said where it starts. docs/extending.md has an example.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import ClassVar

from promptprior.artifacts.artifact import Prior
from promptprior.artifacts.header import Header
from promptprior.config.choices import HeadName
from promptprior.config.mapping import check_bounds
from promptprior.cost import Cost
from promptprior.errors import SpecError
from promptprior.heads.head import Head
from promptprior.methods.options import fact, target_option
from promptprior.methods.run_context import Episode, RunContext
from promptprior.methods.workload import Workload
from promptprior.notation import Params, Tensor
from promptprior.parameterisations.parameterisation import Parameterisation
from promptprior.parameterisations.registry import Form
from promptprior.rules.descent import Penalty
from promptprior.rules.rule import Rule
from promptprior.tasks.sampling.batch import Batch
from promptprior.tasks.sampling.draws import class_of
from promptprior.tasks.task import Task


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

    `variants` are ways to adapt each episode, described as a header keeps them, of which dev picks one: with V of them
    params, penalty and multipliers of elements have copies e * V + v, episode e in variant v. Of an episode's variants
    each of `ensemble_size` equal parts gives a prompt, picked on dev within it; they answer by their mean probability.

    `lr_multipliers` multiply the learning rate of single parameters by name (0 freezes one), or of every element of
    one. `learning_rates` are rates to try in absolute units, for params that are no prompt; without them the settings'
    are tried, in units of the embedding scale. `wrap_rule` turns the descent that targets move by into another rule
    (token dropout, SAM, weight averaging). `trainable`: how many numbers an episode learns, where `init` fitted some
    itself. `head`: the recipe's head with settings of this start (sites of a prior); by default as it is registered.
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


@dataclass(frozen=True)
class Recipe(Workload):
    """What every recipe says of itself; `init`, and `fit` where it learns from sources, are its own.

    A control arm is a value of a recipe under another name: Bmtpt(name="bmtpt_chains", kernel="none"). `prior_of` names
    the method whose priors such an arm starts from, where it differs from that one on targets alone. `is_ensemble`:
    each copy of a prior adapts by itself, and all answer by their mean probability. `revision` is raised when a change
    of the recipe's code changes its results: cells of other revisions are not reused.
    """

    name: str = fact("")
    needs_sources: bool = fact(False, init=False)
    uses_shots: bool = fact(True, init=False)
    prior_of: str = fact("", omit_from_hash_if=lambda _: True)
    is_ensemble: bool = fact(False, omit_from_hash_if=lambda _: True)
    revision: int = fact(0, init=False, omit_from_hash_if=lambda recipe: recipe.revision == 0)
    head: HeadName = target_option(
        "verbalizer", "how states become answers: by the choices' likelihood, or a head", omit_from_hash_if_default=True
    )

    trains: ClassVar[bool] = True  # off where adaptation learns nothing
    adapts_one_by_one: ClassVar[bool] = False  # on where episodes cannot be copies of one problem
    needs_tokens: ClassVar[bool] = False  # on where it reads or mixes embeddings of prompts, which a prefix has not

    def __post_init__(self) -> None:
        check_bounds(self, "--options.")

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Where each episode starts, given its prior (none for methods without sources); only `shots.train` teach."""
        raise NotImplementedError

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Learn from the source tasks. Raises SpecError for a method that learns nothing from them."""
        raise SpecError(f"method {self.name!r} has no prior to fit; use it with adapt or compare")

    def source_recipe(self) -> "Recipe":
        """The recipe that fits this one's priors, with target options at their defaults; equal ones share a prior."""
        defaults = {f.name: f.default for f in fields(self) if f.metadata.get("target") and f.default is not MISSING}
        return replace(self, **defaults, name=self.prior_of or self.name, prior_of="", is_ensemble=False)

    def starts_from(self, prior: Header) -> bool:
        """Whether it can start from a prior of this header: its own, or one that fits its source stage."""
        return prior.method == self.name or prior.settings.get("prior_of") == self.source_recipe().name

    def serves(self, task: Task) -> str | None:
        """Why this method cannot answer a task, in words; None where it can. A head needs classes to tell apart."""
        if self.head == "verbalizer" or class_of(task, task.split("train")[0]) != "all":
            return None
        what = "its choices differ by example" if task.is_choice else "its answers are free text"
        return f"{what}, so a head has no classes to tell apart (--options.head)"


Method = Recipe  # what fit, adapt and compare take

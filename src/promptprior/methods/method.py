"""The contract of a method, a short recipe named after its paper: what it learns from sources, where targets start.

A recipe chooses a parameterisation and a rule and hands runs to `lab.train`, the one training loop; adaptation to
targets is the same for all of them (adapt.py) once they have said where it starts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.backbone import Backbone, training_tokens
from promptprior.config.mapping import stable_hash
from promptprior.config.training import Settings, Training
from promptprior.cost import Cost
from promptprior.notation import Float, Params, Tensor
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.initial import start_prompt
from promptprior.parameterisations.parameterisation import Parameterisation
from promptprior.parameterisations.registry import Form
from promptprior.rules.descent import Descent, Penalty
from promptprior.rules.optimiser import optimiser, stage_rate
from promptprior.tasks.sampling.draws import Draws, MixtureDraws, Pool, Shots, generator, mixture_rates
from promptprior.tasks.task import Task
from promptprior.train import Run, Trained


@dataclass(frozen=True)
class Episode:
    """One target with one draw of its few labelled examples."""

    task: Task
    k: int
    seed: int
    shots: Shots

    @property
    def key(self) -> str:
        """What tells its results from those of every other episode."""
        drawn = [[e.id for e in examples] for examples in (self.shots.train, self.shots.dev)]
        return stable_hash([self.task.fingerprint, self.k, self.seed, drawn])


@dataclass(frozen=True)
class RunContext:
    """What a recipe works with. `train` runs a Run under a name, checkpointed and watched by whoever made the lab."""

    backbone: Backbone
    settings: Settings
    train: Callable[[Run, str], Trained]

    def start(self, *names: object, labels: Sequence[str] = ()) -> Float[Tensor, "L D"]:
        """A starting prompt as the settings say; each sequence of names has its own randomness."""
        s = self.settings
        made = start_prompt(self.backbone, s.start, s.length, generator("start", *names), s.start_text, labels)
        return made.to(self.backbone.frozen.device)

    def key(self, *parts: object) -> str:
        """The key of a run: backbone, settings and whatever else decides its result."""
        return stable_hash(
            [self.backbone.card.fingerprint, str(self.backbone.frozen.dtype), self.settings, *map(str, parts)]
        )

    def pool(self, task: Task, split: str = "train", task_index: int = 0, copy: int = 0) -> Pool:
        """All examples of a split, tokenised."""
        return Pool(training_tokens(self.backbone, task, task.split(split)), task_index, copy)

    def mixture(self, sources: Sequence[Task], seed: int) -> MixtureDraws:
        """Batches of mixed sources at the rates the settings name."""
        s = self.settings
        pools = [self.pool(task, task_index=i) for i, task in enumerate(sources)]
        rates = mixture_rates([len(p.items) for p in pools], s.mixture, s.mixture_cap, s.mixture_temperature)
        return MixtureDraws(pools, rates.tolist(), s.source.batch_size, seed)

    def descent(
        self,
        key: str,
        stage: Training,
        objective: PromptObjective,
        params: Params,
        draws: Draws,
        lr_multipliers: Mapping[str, float] | None = None,
        penalty: Penalty | None = None,
    ) -> Run:
        """Plain descent at the stage's first rate; `lr_multipliers` multiply that of single parameters by name."""
        rate = stage_rate(stage, stage.learning_rates[:1], self.backbone.scale, lr_multipliers)
        rule = Descent(optimiser(stage.optimiser, rate, stage.weight_decay), stage.clip, penalty)
        return Run(key, objective, rule, params, draws, stage.steps)


@dataclass(frozen=True)
class InitialParams:
    """Where a source stage begins: parameters, what reads them, and factors on the rates of some (0 freezes one)."""

    form: Parameterisation
    params: Params
    frozen: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FitResult:
    """What the sources taught: parameters, what reads them, and what is worth knowing about them."""

    parameterisation: Parameterisation
    params: Params
    diagnostics: Mapping[str, object] = field(default_factory=dict)
    cost: Cost = Cost()


@dataclass(frozen=True)
class AdaptationInit:
    """Where adaptation starts: one copy of the parameters per episode. `trains` is off where nothing is learned.

    `lr_multipliers` multiply the learning rate of single parameters by name (0 freezes one), or of every element of one.
    `variants` are ways to adapt each episode, described as a header keeps them, of which dev picks one: with V of them
    params, penalty and factors of elements have copies e * V + v, episode e in variant v. `rates` are learning rates to
    try in absolute units, for params that are no prompt; without them the settings' are tried. Of an episode's variants
    each of `together` equal parts gives a prompt, picked on dev within its part; they answer by their mean probability.
    """

    parameterisation: Form
    params: Params
    penalty: Penalty | None = None
    trains: bool = True
    lr_multipliers: Mapping[str, float | Tensor] = field(default_factory=dict)
    variants: Sequence[Mapping[str, object]] = ({},)
    together: int = 1
    rates: Sequence[float] = ()


class Method(Protocol):
    """A recipe."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def needs_sources(self) -> bool:
        """Whether it learns a prior first."""
        ...

    @property
    def uses_shots(self) -> bool:
        """Whether it learns anything from a target's examples."""
        ...

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Learn from the source tasks."""
        ...

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Where each episode starts, given the prior of its seed (none for methods without sources)."""
        ...


@runtime_checkable
class OneByOne(Protocol):
    """A method whose episodes cannot be copies of one problem: each has a `init` and a run of its own."""

    @property
    def one_by_one(self) -> bool:
        """Why not."""
        ...


@runtime_checkable
class SharesPriors(Protocol):
    """A method with options that only targets see: arms that differ in nothing else share a prior."""

    def source_view(self) -> Method:
        """The method whose source stage is this one's, with the options that only targets see at their defaults."""
        ...


@runtime_checkable
class TrainsTargetsTogether(Protocol):
    """A method that may first train all targets of a prior, k and seed together, for some steps."""

    @property
    def joint_steps(self) -> int:
        """How many; 0 for none."""
        ...


def trains_targets_jointly(method: Method) -> bool:
    """Whether a target's result depends on which other targets adapt along with it."""
    return isinstance(method, TrainsTargetsTogether) and method.joint_steps > 0


def source_stage(method: Method) -> Method:
    """All of a method that decides its prior: equal stages fit equal priors, under whatever name."""
    return method.source_view() if isinstance(method, SharesPriors) else method


Recipe = TypeVar("Recipe")


def viewed(method: Any, recipe: type[Recipe], targets_only: Sequence[str]) -> Recipe:
    """A recipe with a method's options, but for its name and for those that only targets see."""
    dropped = {"name", *targets_only}
    return recipe(**{f.name: getattr(method, f.name) for f in fields(method) if f.name not in dropped})


def stacked(prompts: Sequence[Float[Tensor, "L D"]]) -> Params:
    """One direct prompt per copy."""
    return {"prompt": torch.stack(list(prompts))}

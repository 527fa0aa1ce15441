"""MPT-meta: a start for prompts, learned so that a few steps on a few examples take it far.

Qin, Joty, Li, Zhao 2023, "Learning to Initialize: Can Meta Learning Improve Cross-task Generalization in Prompt
Tuning?" (ACL 2023, arXiv 2302.08143). Parameterisation direct (or bank, which is ours), rules maml and reptile.
docs/meta.md has the mathematics, the paper's protocol, and where the authors' code and ours differ.

By default a meta-learner may use as many rows as the multi-task baseline (source steps x batch size), every row that
passes through the backbone counted once; a row of a Hessian product costs about twice as much time as it counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from promptprior.artifacts.artifact import Prior
from promptprior.backbone import training_tokens
from promptprior.config.training import Settings, Training, setting
from promptprior.errors import SpecError
from promptprior.methods.from_sources.multitask import loss_curve
from promptprior.methods.method import AdaptationInit, Episode, FitResult, InitialParams, RunContext, stacked
from promptprior.methods.shared.bank_setup import BankRecipe
from promptprior.notation import Params
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.direct import Direct
from promptprior.rules.inner import Inner, InnerKind, inner_optimiser
from promptprior.rules.maml import FACTORS, Implicit, Maml, apart, with_factors
from promptprior.rules.optimiser import Optimiser, optimiser, stage_rate
from promptprior.rules.reptile import Reptile
from promptprior.rules.rule import Rule
from promptprior.tasks.sampling.meta_draws import MetaBatch, MetaDraws, Unit, units_of
from promptprior.tasks.task import Task
from promptprior.train import Run

RATES: Mapping[InnerKind, float] = {"sgd": 1.0, "adam": 0.1}  # both move SmolLM2's prompts by 3 to 20 % in three steps
FACTOR_SPEED = 0.1  # an outer step moves Meta-SGD's factors by a tenth of what it moves prompts, in their units


@dataclass(frozen=True)
class Meta:
    """What all meta-learners of an initialisation share; each of them adds its rule.

    A unit is a task with one draw of its examples: halves of its training split, or `shots` examples per class for the
    support and as many others for the query. Units of a meta-batch adapt together, as copies.
    """

    inner_steps: int = setting(2, "inner steps")
    inner_rate: float | None = setting(None, "in units of the embedding scale; by default 1 for sgd, 0.1 for adam")
    inner_optimiser: InnerKind = setting("sgd", "sgd or adam")
    units_per_step: int = setting(4, "units in a meta-batch, at most all there are")
    support_size: int = setting(4, "texts of a unit in each inner step")
    query_size: int = setting(4, "texts of a unit that its adapted copy is judged on")
    units_per_task: int = setting(2, "draws of every source task, at most 5")
    shots: int | None = setting(None, "examples per class in a unit's support, as many in its query; by default halves")
    budget: Literal["rows", "updates"] = setting("rows", "equal to multitask: rows through the backbone, or updates")
    parameterisation: Literal["direct", "bank"] = setting("direct", "direct: a prompt; bank: tpt's bank of tokens")
    inner_names: tuple[str, ...] = setting((), "parameters that inner steps adapt (bank, own); by default all")
    name: str = "meta"
    needs_sources: bool = True
    uses_shots: bool = True

    def rule(self, outer: Optimiser, inner: Inner, clip: float | None) -> Rule[MetaBatch]:
        """How the start moves."""
        raise NotImplementedError

    @property
    def rows_per_unit(self) -> int:
        """Rows through the backbone that one unit costs in one meta-update."""
        raise NotImplementedError

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Meta-learn the start on units of the sources."""
        begun = self.begun(context, sources, seed)
        run = self.run(context, begun, sources, seed, context.key(self, seed, *(t.fingerprint for t in sources)))
        done = context.train(run, "source")
        diagnostics = {
            "source_loss": loss_curve(done.history),
            "units": len(sources) * self.units_per_task,
            "meta_updates": run.steps,
            "moved": [line["moved"] for line in done.history[:1] + done.history[-1:]],
        }
        return FitResult(begun.form, done.params, diagnostics, done.cost)

    def run(self, context: RunContext, begun: InitialParams, sources: Sequence[Task], seed: int, key: str) -> Run:
        """Meta-learning from a beginning, which may be anybody's."""
        draws = self.draws(self.units(context, sources, seed), seed)
        stage = replace(context.settings.source, steps=self.steps(context.settings.source, draws.units_per_step))
        speeds = {name: FACTOR_SPEED / context.backbone.scale for name in begun.params if name.startswith(FACTORS)}
        rate = stage_rate(stage, stage.learning_rates[:1], context.backbone.scale, {**speeds, **begun.frozen})
        outer = optimiser(stage.optimiser, rate, stage.weight_decay)
        return Run(
            key=key,
            objective=PromptObjective(context.backbone, begun.form),
            rule=self.rule(outer, self.inner(context, begun.params, begun.frozen), stage.clip),
            params=begun.params,
            draws=draws,
            steps=stage.steps,
        )

    def begun(self, context: RunContext, sources: Sequence[Task], seed: int) -> InitialParams:
        """The parameterisation, and its params before the first meta-update."""
        if self.parameterisation == "direct":
            return InitialParams(
                Direct(context.settings.length, context.backbone.width), stacked([context.start(seed, self.name)])
            )
        return BankRecipe().begun(context, sources, context.mixture(sources, seed), seed)[0]

    def inner(self, context: RunContext, params: Params, frozen: Mapping[str, float]) -> Inner:
        """Inner steps in units of the backbone's scale, on all that is not frozen or on what `inner_names` names."""
        rate = RATES[self.inner_optimiser] if self.inner_rate is None else self.inner_rate
        free = tuple(name for name in apart(params)[0] if name not in frozen)
        return Inner(inner_optimiser(self.inner_optimiser, rate, context.backbone.scale), self.inner_names or free)

    def units(self, context: RunContext, sources: Sequence[Task], seed: int) -> list[Unit]:
        """All units; rules without a query learn from both sides."""

        def tokens(task: Task, examples: Sequence[Any]) -> list[Any]:
            return training_tokens(context.backbone, task, examples) if examples else []

        return units_of(sources, tokens, self.units_per_task, self.shots, seed, pooled=self.query_size == 0)

    def draws(self, units: Sequence[Unit], seed: int) -> MetaDraws:
        """Meta-batches of these units."""
        count = min(self.units_per_step, len(units))
        return MetaDraws(units, count, self.inner_steps, self.support_size, self.query_size, [seed])

    def steps(self, stage: Training, units: int) -> int:
        """Meta-updates within the multi-task baseline's budget."""
        if self.budget == "updates":
            return stage.steps
        return max(1, stage.steps * stage.batch_size // (units * self.rows_per_unit)) if stage.steps else 0

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """Every episode starts from its prior's one start."""
        if self.parameterisation == "bank":
            return BankRecipe().init(context, priors, episodes)
        prompts = [prior.params["prompt"][0].to(context.backbone.frozen.device) for prior in priors]
        return AdaptationInit(Direct(context.settings.length, context.backbone.width), stacked(prompts))


@dataclass(frozen=True)
class MamlStart(Meta):
    """MAML, exact: the gradient of the query loss through all inner steps (Finn et al. 2017)."""

    name: str = "maml"

    def rule(self, outer: Optimiser, inner: Inner, clip: float | None) -> Rule[MetaBatch]:
        """Second order."""
        return Maml(outer, inner, 2, clip)

    @property
    def rows_per_unit(self) -> int:
        """Inner steps twice (there and back), and the query."""
        return 2 * self.inner_steps * self.support_size + self.query_size


@dataclass(frozen=True)
class FomamlStart(Meta):
    """FoMAML: the query gradient at the adapted copy."""

    name: str = "fomaml"

    def rule(self, outer: Optimiser, inner: Inner, clip: float | None) -> Rule[MetaBatch]:
        """First order."""
        return Maml(outer, inner, 1, clip)

    @property
    def rows_per_unit(self) -> int:
        """Inner steps and the query."""
        return self.inner_steps * self.support_size + self.query_size


@dataclass(frozen=True)
class ReptileStart(Meta):
    """Reptile: where inner training leads, without queries (Nichol et al. 2018); both halves of a unit are support."""

    inner_steps: int = setting(4, "inner steps")
    inner_optimiser: InnerKind = setting("adam", "sgd or adam")
    query_size: int = setting(0, "always 0: Reptile judges nothing")
    name: str = "reptile"

    def __post_init__(self) -> None:
        if self.query_size:
            raise SpecError(f"query_size {self.query_size} (--options.reptile.query-size): reptile has no query")

    def rule(self, outer: Optimiser, inner: Inner, clip: float | None) -> Rule[MetaBatch]:
        """The displacement."""
        return Reptile(outer, inner, clip)

    @property
    def rows_per_unit(self) -> int:
        """Inner steps."""
        return self.inner_steps * self.support_size


@dataclass(frozen=True)
class MetaSgdStart(MamlStart):
    """Meta-SGD: MAML that also learns the rate of every element (Li et al. 2017); targets keep these rates."""

    name: str = "meta_sgd"

    def begun(self, context: RunContext, sources: Sequence[Task], seed: int) -> InitialParams:
        """A factor of 1 for every element. Raises SpecError for the bank, whose adaptation has no rate per element."""
        if self.parameterisation != "direct":
            raise SpecError(f"meta_sgd learns rates of a direct prompt; parameterisation is {self.parameterisation!r}")
        plain = super().begun(context, sources, seed)
        return replace(plain, params=with_factors(plain.params))

    def init(self, context: RunContext, priors: Sequence[Prior], episodes: Sequence[Episode]) -> AdaptationInit:
        """The learned factors multiply the learning rate of every element."""
        lr_multipliers = torch.stack([prior.params[f"{FACTORS}prompt"][0] for prior in priors])
        return replace(
            super().init(context, priors, episodes),
            lr_multipliers={"prompt": lr_multipliers.to(context.backbone.frozen.device)},
        )


@dataclass(frozen=True)
class ImamlStart(Meta):
    """iMAML: the implicit gradient of a pulled-back inner loop (Rajeswaran et al. 2019).

    Every inner step sees the same texts, so that there is one inner minimum to differentiate.
    """

    inner_steps: int = setting(4, "inner steps")
    width: float = setting(1.0, "how far a copy may go from the start, in units of the embedding scale")
    solve_steps: int = setting(3, "steps of conjugate gradients")
    name: str = "imaml"

    def rule(self, outer: Optimiser, inner: Inner, clip: float | None) -> Rule[MetaBatch]:
        """The implicit gradient."""
        return Implicit(outer, replace(inner, names=None), self.width, self.solve_steps, clip)

    def draws(self, units: Sequence[Unit], seed: int) -> MetaDraws:
        """Meta-batches whose inner batches are all the same."""
        return replace(super().draws(units, seed), same_support=True)

    @property
    def rows_per_unit(self) -> int:
        """Inner steps, the query, and one Hessian product for each step of the solver."""
        return (self.inner_steps + self.solve_steps) * self.support_size + self.query_size


PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "maml": {"inner_steps": 1, "support_size": 2, "query_size": 2},
    "fomaml": {"inner_steps": 1, "support_size": 4, "query_size": 4},
    "reptile": {"inner_steps": 10, "support_size": 4, "inner_optimiser": "sgd"},
}
"""The paper's own sizes, from its launch scripts, with `PUBLISHED_UNITS`. Its inner rate, 3e-5 absolute, is left out on
purpose: T5's prompts have entries of about 15, whose float32 spacing is 9.5e-7, so that gradients below 0.016 an entry
move nothing; rules refuse it. What rate would have matched the paper's intent cannot be recovered: ours stands instead.
Nor can its 32 + 32 examples of free-text tasks be had with one number of shots (ours: 16 + 16)."""

PUBLISHED_UNITS: Mapping[str, Any] = {"shots": 16, "units_per_task": 5, "units_per_step": 2, "budget": "updates"}


def published_options(name: str) -> dict[str, Any]:
    """The published options of maml, fomaml or reptile. Raises SpecError for others, which the paper has not."""
    if name not in PUBLISHED:
        raise SpecError(f"no published settings for {name!r}: the paper has {', '.join(PUBLISHED)}")
    return {**PUBLISHED_UNITS, **PUBLISHED[name]}


def published_settings(scale: float) -> Settings:
    """The paper's settings on a backbone of this embedding scale: 100 tokens, Adafactor at 0.5 absolute.

    Source: 5,000 updates. Target: 3,000 steps of batch 16 (8 on each of 2 GPUs), rates 0.5, 0.4, 0.3 and 0.2, a look
    at dev every 50. Its prompts stood after the text and dropout was on; ours stand before it, without.
    """
    plain = Training(optimiser="adafactor", schedule="constant", weight_decay=1e-5)
    source = replace(plain, steps=5000, batch_size=4, learning_rates=(0.5 / scale,))
    rates = tuple(rate / scale for rate in (0.5, 0.4, 0.3, 0.2))
    target = replace(plain, steps=3000, batch_size=16, learning_rates=rates, eval_every=50)
    return Settings(length=100, source=source, target=target)

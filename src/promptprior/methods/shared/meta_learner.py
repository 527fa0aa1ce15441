"""Meta-learning of any start, of a prompt or of tpt's bank: the rules as a table, and the run they make on sources."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from promptprior.config.training import Settings, Training
from promptprior.cost import SECOND_ORDER
from promptprior.errors import SpecError
from promptprior.methods.contract import Recipe
from promptprior.methods.options import fact, option
from promptprior.methods.run_context import InitialParams, RunContext
from promptprior.methods.workload import Workload
from promptprior.objectives.objective import PromptObjective
from promptprior.rules.inner import Inner, InnerAdam, InnerKind, InnerOptimiser, InnerSgd
from promptprior.rules.maml import MULTIPLIER, Implicit, Maml, split_multipliers
from promptprior.rules.optimiser import Optimiser, optimiser, stage_rate
from promptprior.rules.reptile import Reptile
from promptprior.rules.rule import Rule
from promptprior.tasks.sampling.meta_draws import MetaBatch, MetaDraws, units_of
from promptprior.tasks.task import Task
from promptprior.train import Run

MetaRuleName = Literal["maml", "fomaml", "reptile", "meta_sgd", "imaml"]
INNER: Mapping[InnerKind, tuple[Callable[[float, float], InnerOptimiser], float]] = {
    "sgd": (InnerSgd, 1.0),
    "adam": (InnerAdam, 0.1),
}
"""Inner optimisers and their rates by default: both move SmolLM2's prompts 3 to 20 % in 3 steps."""
FACTOR_SPEED = 0.1  # an outer step moves Meta-SGD's factors by a tenth of what it moves prompts, in their units


@dataclass(frozen=True)
class MetaRule:
    """How the start moves, and the rows through the backbone that a unit costs in one meta-update.

    `second_order_rows` are those of `rows_per_unit` that Hessian products read.
    """

    make: Callable[[Optimiser, Inner, float | None, "MetaRecipe"], Rule[MetaBatch]]
    rows_per_unit: Callable[["MetaRecipe"], int]
    second_order_rows: Callable[["MetaRecipe"], int] = lambda _: 0


def _maml(order: Literal[1, 2], passes: int) -> MetaRule:
    return MetaRule(
        lambda outer, inner, clip, _: Maml(outer, inner, order, clip),
        lambda method: passes * method.inner_steps * method.support_size + method.query_size,
        lambda method: (passes - 1) * method.inner_steps * method.support_size,
    )


META_RULES: Mapping[MetaRuleName, MetaRule] = {
    "maml": _maml(2, 2),  # inner steps are read there and back
    "fomaml": _maml(1, 1),
    "meta_sgd": _maml(2, 2),
    "reptile": MetaRule(
        lambda outer, inner, clip, _: Reptile(outer, inner, clip),
        lambda method: method.inner_steps * method.support_size,
    ),
    "imaml": MetaRule(
        lambda outer, inner, clip, method: Implicit(
            outer, replace(inner, names=None), method.width, method.solve_steps, clip
        ),
        lambda method: (method.inner_steps + method.solve_steps) * method.support_size + method.query_size,
        lambda method: method.solve_steps * method.support_size,
    ),
}


@dataclass(frozen=True)
class MetaRecipe(Recipe):
    """A meta-learned start. A unit is a task with one draw of its examples; units of a meta-batch adapt as copies."""

    rule: MetaRuleName = fact("maml", omit_from_hash_if=lambda _: True)  # the name says it
    inner_steps: int = option(2, "inner steps", least=1)
    inner_rate: float | None = option(
        None, "in units of the embedding scale; by default 1 for sgd, 0.1 for adam", above=0
    )
    inner_optimiser: InnerKind = option("sgd", "sgd or adam")
    units_per_step: int = option(4, "units in a meta-batch, at most all there are", least=1, most=2**16)
    support_size: int = option(4, "texts of a unit in each inner step", least=1, most=2**16)
    query_size: int = option(
        4, "texts of a unit that its adapted copy is judged on; reptile has none", least=0, most=2**16
    )
    units_per_task: int = option(2, "draws of every source task, at most 5", least=1, most=2**16)
    shots: int | None = option(
        None, "examples per class in a unit's support, as many in its query; by default halves", least=1
    )
    budget: Literal["rows", "updates"] = option("rows", "equal to multitask: rows through the backbone, or updates")
    parameterisation: Literal["direct", "bank"] = option("direct", "direct: a prompt; bank: tpt's bank of tokens")
    inner_names: tuple[str, ...] = option((), "parameters that inner steps adapt (bank, own); by default all")
    width: float = option(
        1.0,
        "of imaml: how far a copy may go from the start, in units of the embedding scale",
        above=0,
        omit_from_hash_if=lambda recipe: recipe.rule != "imaml",
    )
    solve_steps: int = option(
        3, "of imaml: steps of conjugate gradients", least=1, omit_from_hash_if=lambda recipe: recipe.rule != "imaml"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule == "reptile" and self.query_size:
            raise SpecError(f"query size {self.query_size} (--options.reptile.query-size): reptile has no query")
        if self.rule != "imaml" and (self.width, self.solve_steps) != (1.0, 3):
            raise SpecError(f"width and solve steps (--options.{self.name}.*) are options of imaml alone")
        if self.rule == "meta_sgd" and self.parameterisation != "direct":
            raise SpecError(f"meta_sgd learns rates of a direct prompt; parameterisation is {self.parameterisation!r}")

    def meta_updates(self, stage: Training, units: int) -> int:
        """Steps of the outer optimiser with so many units each, within the budget."""
        if self.budget == "updates" or not stage.steps:
            return stage.steps
        rows = units * META_RULES[self.rule].rows_per_unit(self)
        return max(1, stage.steps * stage.batch_size // rows)

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """Its passes are the rows of all units in all updates."""
        stage, rule = settings.source, META_RULES[self.rule]
        rows = rule.rows_per_unit(self) + (SECOND_ORDER - 1) * rule.second_order_rows(self)
        updates = self.meta_updates(stage, self.units_per_step)
        passes = updates * self.units_per_step * rows / max(1, stage.steps * stage.batch_size)
        return replace(super().workload(settings, sources), source_passes=passes)

    def prompt_tokens(self, settings: Settings, texts: float, sources: int = 0) -> float:
        """On sources a prompt for each unit."""
        return settings.length * (texts / self.support_size if sources else 1)

    def source_run(
        self, context: RunContext, initial: InitialParams, sources: Sequence[Task], seed: int, key: str
    ) -> Run:
        """Meta-learning from any start, of a prompt or of a bank, within the multi-task baseline's budget."""
        # rules without a query learn from both sides of a unit
        units = units_of(sources, context.tokens, self.units_per_task, self.shots, seed, pooled=self.query_size == 0)
        count = min(self.units_per_step, len(units))
        sides = (self.inner_steps, self.support_size, self.query_size)
        draws = MetaDraws(units, count, *sides, [seed], same_support=self.rule == "imaml")
        stage, scale = context.settings.source, context.backbone.scale
        stage = replace(stage, steps=self.meta_updates(stage, count))

        speeds = {name: FACTOR_SPEED / scale for name in initial.params if name.startswith(MULTIPLIER)}
        rate = stage_rate(stage, stage.learning_rates[:1], scale, {**speeds, **initial.lr_multipliers})
        make_inner, inner_rate = INNER[self.inner_optimiser]
        inner_optimiser = make_inner(inner_rate if self.inner_rate is None else self.inner_rate, scale)
        free = tuple(name for name in split_multipliers(initial.params)[0] if name not in initial.lr_multipliers)
        inner = Inner(inner_optimiser, self.inner_names or free)
        outer = optimiser(stage.optimiser, rate, stage.weight_decay)
        objective = PromptObjective(context.backbone, initial.parameterisation)
        rule = META_RULES[self.rule].make(outer, inner, stage.clip, self)
        return Run(key, objective, rule, initial.params, draws, stage.steps)

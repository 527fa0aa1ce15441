"""TPT: a bank of prompt tokens learned on many tasks; every text retrieves its own prompt from it.

Wu et al. 2023 (Findings of EMNLP 2023, pp. 8734-8746); docs/tpt.md compares their released code with ours. Stage 1
trains the bank on mixed sources; stage 2 adapts bank and task prompt to a target. Parameterisation bank, rule descent
(or what `rule` says, with the options of the method it is borrowed from). Released settings are `tpt_as_released`;
`tpt` is ours: retrieved and task tokens share the length of prompt tuning, queries are centred, keys start from source
texts, and the task prompt is learned on the sources too. `tpt_static` and `tpt_random` are controls that retrieve
without regard to what a text says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

from promptprior.config.mapping import from_mapping
from promptprior.config.training import setting
from promptprior.errors import SpecError
from promptprior.methods.from_sources.bmtpt import Bmtpt, force_curves
from promptprior.methods.from_sources.meta_prompt_tuning import FomamlStart, MamlStart, ReptileStart
from promptprior.methods.from_sources.multitask import loss_curve
from promptprior.methods.method import FitResult, InitialParams, Method, RunContext, viewed
from promptprior.methods.shared.bank_setup import BankRecipe, samples
from promptprior.objectives.objective import PromptObjective
from promptprior.parameterisations.bank import Bank, Scoring
from promptprior.parameterisations.text_queries import Query
from promptprior.tasks.sampling.draws import MixtureDraws
from promptprior.tasks.task import Task
from promptprior.train import Run


class Teacher(Protocol):
    """A method whose rule may move the bank in stage 1."""

    def run(self, context: RunContext, begun: InitialParams, sources: Sequence[Task], seed: int, key: str) -> Run:
        """Its source stage, from a beginning that is not its own."""
        ...


TEACHERS: Mapping[str, type[Any]] = {
    "svgd": Bmtpt,
    "maml": MamlStart,
    "fomaml": FomamlStart,
    "reptile": ReptileStart,
}


@dataclass(frozen=True)
class Tpt(BankRecipe):
    """A bank that is learned on sources and adapted to targets."""

    rule: Literal["descent", "svgd", "maml", "fomaml", "reptile"] = setting(
        "descent", "what moves the bank in stage 1", omit_from_hash_if_default=True
    )
    rule_options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "options of that rule, as bmtpt, maml, fomaml or reptile have them", "quiet": True},
    )
    name: str = "tpt"
    needs_sources: bool = True
    uses_shots: bool = True

    def __post_init__(self) -> None:
        if self.rule == "descent" and self.rule_options:
            raise SpecError(f"rule descent has no options; got {', '.join(self.rule_options)} (--rule-options)")
        self.teacher()

    def teacher(self) -> Teacher | None:
        """The method whose rule moves the bank; None for descent. Raises SpecError for options it does not have."""
        if self.rule == "descent":
            return None
        made: Teacher = from_mapping(TEACHERS[self.rule], self.rule_options, f"options of rule {self.rule}")
        return made

    def source_view(self) -> Method:
        """The same bank, whether targets train it or not."""
        return viewed(self, type(self), ("freeze_bank",))

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Stage 1: the bank, on all sources."""
        draws = context.mixture(sources, seed)
        begun, before = self.begun(context, sources, draws, seed)
        done = context.train(self.run(context, begun, sources, draws, seed), "source")
        texts = dict(zip([t.name for t in sources], samples(draws, seed), strict=True))
        mean = {name: value.mean(0, keepdim=True) for name, value in done.params.items()}
        diagnostics = {
            "source_loss": loss_curve(done.history),
            **({"forces": force_curves(done.history)} if self.rule == "svgd" else {}),
            **cast(Bank, begun.form).diagnose(mean, texts),
            "parameters": self.form(context, self.own(context)).counts(mean),
        }
        return FitResult(begun.form, done.params, diagnostics, done.cost + before)

    def run(
        self, context: RunContext, begun: InitialParams, sources: Sequence[Task], draws: MixtureDraws, seed: int
    ) -> Run:
        """Stage 1 as the rule has it."""
        key = context.key(self, seed, *(t.fingerprint for t in sources))
        if teacher := self.teacher():
            return teacher.run(context, begun, sources, seed, key)
        objective = PromptObjective(context.backbone, begun.form)
        return context.descent(key, context.settings.source, objective, begun.params, draws, begun.frozen)


@dataclass(frozen=True)
class TptAsReleased(Tpt):
    """The released code's bank: 600 tied tokens, 100 by dot product with the maximum, 100 fresh task tokens."""

    bank_size: int = setting(600, "tokens in the bank")
    retrieve: int = setting(100, "tokens each text retrieves")
    task_tokens: int = setting(100, "tokens of the task prompt")
    task_prompt: Literal["learned", "fresh", "none"] = setting("fresh", "fresh: new for each target; learned; none")
    query: Query = setting("max", "pool of the text's word embeddings")
    centre: bool = setting(False, "take the sources' mean query from every query")
    keys: Literal["tied", "separate", "texts"] = setting("tied", "tied: tokens are their keys")
    scoring: Scoring = setting("dot", "how rows are scored")
    name: str = "tpt_as_released"


@dataclass(frozen=True)
class TptStatic(Tpt):
    """Control: every text gets the same tokens of the bank."""

    scoring: Scoring = setting("same", "every text gets the same rows")
    name: str = "tpt_static"


@dataclass(frozen=True)
class TptRandom(Tpt):
    """Control: every text gets tokens drawn by a hash of it."""

    scoring: Scoring = setting("random", "rows by a hash of the text")
    name: str = "tpt_random"

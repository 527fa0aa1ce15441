"""TPT: a bank of prompt tokens learned on many tasks; every text retrieves its own prompt from it.

Wu et al. 2023 (Findings of EMNLP 2023, pp. 8734-8746); docs/tpt.md compares their released code with ours. Stage 1
trains the bank on mixed sources; stage 2 adapts bank and task prompt to a target. Parameterisation bank, rule descent
(or what `rule` says, with the options of the method it is borrowed from). `tpt_as_released` has the released sizes,
pooling, scores and parts. But it starts from the 5,000 most frequent tokens (theirs: ids 100-999 for the bank, 100-599
for the task prompt), keeps retrieved rows in bank order under mean pooling too (theirs: in order of score), and trains
without dropout. `tpt` is ours: retrieved and task tokens share the length of prompt tuning, queries are centred, keys
start from source texts, and the task prompt is learned on the sources too. `tpt_static` and `tpt_random` are controls
that retrieve without regard to what a text says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from promptprior.config.training import Settings
from promptprior.errors import SpecError
from promptprior.methods.from_sources import bmtpt, meta_prompt_tuning
from promptprior.methods.learned import FitResult
from promptprior.methods.options import fact, option, with_options
from promptprior.methods.run_context import RunContext
from promptprior.methods.shared.bank_setup import BankRecipe, sample_texts
from promptprior.methods.shared.curves import FORCES, curve
from promptprior.methods.shared.meta_learner import MetaRecipe
from promptprior.methods.shared.posterior import PosteriorRecipe
from promptprior.methods.workload import Workload
from promptprior.parameterisations.retrieval.bank import Bank
from promptprior.tasks.task import Task

BORROWED: Mapping[str, PosteriorRecipe | MetaRecipe] = {
    "svgd": bmtpt.ARMS[0],
    **{arm.name: arm for arm in meta_prompt_tuning.ARMS if arm.name in ("maml", "fomaml", "reptile")},
}
"""Methods whose rule may move the bank in stage 1."""


@dataclass(frozen=True)
class Tpt(BankRecipe):
    """A bank that is learned on sources and adapted to targets."""

    needs_sources: bool = fact(True, init=False)
    revision: int = fact(1, init=False, omit_from_hash_if=lambda arm: arm.rule != "svgd")  # 1: as bmtpt's
    rule: Literal["descent", "svgd", "maml", "fomaml", "reptile"] = option(
        "descent", "what moves the bank in stage 1", omit_from_hash_if_default=True
    )
    rule_options: Mapping[str, Any] = field(
        default_factory=dict,
        kw_only=True,
        metadata={
            "help": "options of that rule, as bmtpt, maml, fomaml or reptile have them",
            "omit_from_hash_if_default": True,
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule == "descent" and self.rule_options:
            raise SpecError(f"rule descent has no options; got {', '.join(self.rule_options)} (--options.rule-options)")
        self.borrowed()

    def borrowed(self) -> PosteriorRecipe | MetaRecipe | None:
        """The method whose rule moves the bank; None for descent. Raises SpecError for options it does not have."""
        if self.rule == "descent":
            return None
        return with_options(BORROWED[self.rule], self.rule_options, f"options of rule {self.rule}")

    def workload(self, settings: Settings, sources: int = 1) -> Workload:
        """The passes of the rule, and one for each source's prompt where the bank starts from them."""
        lender = self.borrowed()
        passes = lender.workload(settings, sources).source_passes if lender else 1.0
        return replace(super().workload(settings, sources), source_passes=passes + (self.start == "sources"))

    def fit(self, context: RunContext, sources: Sequence[Task], seed: int) -> FitResult:
        """Stage 1: the bank, on all sources."""
        draws = context.mixture(sources, seed)
        initial, start_cost = self.initial_bank(context, sources, draws, seed)
        key = context.key(self, seed, *(t.fingerprint for t in sources))
        if lender := self.borrowed():
            run = lender.source_run(context, initial, sources, seed, key)
        else:
            run = context.descent(key, context.settings.source, initial, draws)
        done = context.train(run, "source")
        texts = dict(zip([t.name for t in sources], sample_texts(draws, seed), strict=True))
        mean = {name: value.mean(0, keepdim=True) for name, value in done.params.items()}
        diagnostics = {
            "source_loss": curve(done.history),
            **({"forces": {name: curve(done.history, name) for name in FORCES}} if self.rule == "svgd" else {}),
            **cast(Bank, initial.parameterisation).diagnose(mean, texts),
            "parameters": self.bank(context, self.own_tokens(context.settings)).counts(mean),
        }
        return FitResult(initial.parameterisation, done.params, diagnostics, done.cost + start_cost)


ARMS = (
    Tpt(),
    Tpt(  # the released code's bank: 600 tied tokens, 100 by dot product with the maximum, 100 fresh task tokens
        name="tpt_as_released",
        bank_size=600,
        retrieve=100,
        task_tokens=100,
        task_prompt="fresh",
        query="max",
        centre=False,
        keys="tied",
        scoring="dot",
    ),
    Tpt(name="tpt_static", scoring="same"),  # control: every text gets the same tokens of the bank
    Tpt(name="tpt_random", scoring="random"),  # control: every text gets tokens drawn by a hash of it
)
